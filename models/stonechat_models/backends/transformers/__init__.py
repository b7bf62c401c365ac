"""Runs a Hugging Face model, unmodified or with fused parts, on packed tokens and a paged KV cache.

May import `backends.quantization`, `backends.native` and the packages below them.
"""
