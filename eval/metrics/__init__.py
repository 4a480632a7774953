"""Metrics: text normalisation, alignment, word error rate, quality of inference, intervals."""
