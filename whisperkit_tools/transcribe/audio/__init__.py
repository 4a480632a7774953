"""From audio files to mel features."""
