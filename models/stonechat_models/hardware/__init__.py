"""Devices, CPU cores and copies between host and device memory.

May import only the modules at the root.
"""
