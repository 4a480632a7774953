"""Whisper checkpoints to Core ML bundles, verified, compressed and measured on any machine."""

__version__ = "0.1.0"
