"""Evaluation runs: tasks, workers, the resumable store, scores."""
