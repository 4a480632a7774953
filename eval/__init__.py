"""Datasets, text normalisers, metrics and reports."""
