"""From windows of features to text: decoding rules, decoding loop, long-form strategies, word times."""
