"""Datasets: recordings with their reference texts."""
