"""Devices, CPU cores and copies between host and device memory.

It may import only the root modules.
"""
