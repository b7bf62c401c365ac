"""The sampler as Triton kernels."""
