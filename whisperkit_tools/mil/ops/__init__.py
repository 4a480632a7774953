"""Kernels of the operations of ML Programs in PyTorch, one module a family; `kernels.kernels` collects them."""
