"""Benchmarks, one a module: `python -m tests.benchmarks` lists them."""
