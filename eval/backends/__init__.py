"""Backends besides the bundle's own programs, each behind the `TranscriptionBackend` protocol.

The backends that run bundles (the executor, Core ML) come from `pipeline`, because `eval` knows no model format. Those
here are imported when they are used, so that none of their libraries is needed otherwise.
"""
