"""Distillation: training smaller models."""
