"""Palettes, sensitivity, allocation and the quality gate."""
