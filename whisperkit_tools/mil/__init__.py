"""Running ML Programs on PyTorch: load an `.mlpackage`, predict, differentiate, inspect.

`program.Program` is the module, `backend.load_backend` chooses between it and Core ML, `graph.read_graph` reads a
package for inspection without its weights.
"""
