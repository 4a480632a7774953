"""ML Programs: reading and running `.mlpackage` folders, on PyTorch or on Core ML.

Reading: `package.Package` opens a package, `graph` reads its operations and constants (with `protos`, `weights_file`,
`tensor_spec`), `operations` lists operation types by the work they do.

Running: `program.Program` is a program as a PyTorch module. `kernels` and `ops` compute its operations, `fusion` with
`fused_kernels` replaces combinations of them, `schedule` and `executor` decide what to run, `inputs` and `states`
convert what the caller passes. `activation_checkpointing` takes gradients in bounded memory. `coreml` runs a package on
Core ML, and `backend.load_backend` chooses between the two.
"""
