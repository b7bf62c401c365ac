"""CUDA graphs of steps, the buffers that they read, and timing of kernels."""
