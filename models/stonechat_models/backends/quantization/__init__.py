"""Linear layers with quantised weights, for CPUs and CUDA devices.

May import `backends.native`, whose kernels the CPU layers use, and the packages below it.
"""
