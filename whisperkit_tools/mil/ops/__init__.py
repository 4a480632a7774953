"""The operations of ML Programs in PyTorch, a module a family. `registry.kernels()` finds them by name."""
