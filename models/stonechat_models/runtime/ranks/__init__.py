"""A model that several devices share: tensor parallelism over `torch.distributed`.

Each device has a rank, which is a process. Transformers' own plan (`tp_plan`) says how each weight
is split. Rank 0 is the engine process. It schedules and samples; the other ranks follow its step
messages, and all of them meet within the forward pass.
"""
