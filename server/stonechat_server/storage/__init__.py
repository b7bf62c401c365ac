"""What the server keeps for its clients: files and batches, each of one owner.

May import `observability` and the layers below it.
"""
