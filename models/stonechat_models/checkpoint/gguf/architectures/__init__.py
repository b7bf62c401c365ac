"""The tables of architectures: how transformers names and configures each one."""
