"""The engine's step: schedules sequences, runs the model, samples, and collects the output.

Owns sequences, blocks and the prefix cache. Imports no particular model: it may import
`backends.base`, `text`, `grammar`, `sampling`, `hardware` and the modules at the root.
"""
