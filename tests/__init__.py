"""Tests and benchmarks: a package, so that `python -m tests.benchmarks` finds itself from the repository's root."""
