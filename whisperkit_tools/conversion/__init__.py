"""Export of the PyTorch modules to `.mlpackage`, and the parity of what was written."""
