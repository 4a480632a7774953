"""The factory of the embedded demo model: grammar, speech synthesis, training, export."""
