"""Whisper rewritten for the Neural Engine's compiler: layouts, layer norm and attention as PyTorch modules.

Every module here works on tensors of shape `[batch, channels, 1, sequence]` and uses only operations that both
`torch.jit.trace` and `torch.export` record with static shapes.
"""
