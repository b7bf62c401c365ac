"""Quantised weights as they are stored: codes, scales and offsets, and products with them."""
