"""The engine's step: it schedules sequences, runs the model, samples, and collects the outputs.

The engine owns sequences, blocks and the prefix cache. It imports no concrete model: it may import
`backends.base`, `text`, `grammar`, `sampling`, `hardware` and the root modules.
"""
