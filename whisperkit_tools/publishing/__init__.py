"""Versioned variants in a model repository: on the Hub, or in a plain folder of the same layout."""
