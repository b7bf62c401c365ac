"""Products of a few and of some rows, by Triton kernels."""
