"""Registries: where variants are published, on the Hub or in a folder."""
