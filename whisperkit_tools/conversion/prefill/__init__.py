"""The prefill: caches of the forced tokens, computed ahead and looked up."""
