"""What is measured: a server or an engine here, and the prompts that it gets."""
