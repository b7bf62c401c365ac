"""Weights that safetensors folders keep in packed formats: GPTQ, AWQ, FP8, NVFP4 and others."""
