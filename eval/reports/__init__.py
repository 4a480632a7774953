"""Reports of evaluation runs as JSON, Markdown and HTML."""
