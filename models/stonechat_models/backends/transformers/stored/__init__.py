"""Weights that stay as stored on a CUDA device, and floats of packed ones."""
