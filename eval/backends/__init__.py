"""Other ways to transcribe than the bundle's own programs, each behind the `Transcriber` protocol.

The backends that run bundles (the executor, Core ML) are handed in by the command line, for `eval` knows no model
format. Those here are imported when they are used, so that none of their libraries is needed otherwise.
"""
