"""Images of a request: where they come from, the bounds on them, and the way to the processor.

May import `structured` and the layers below it.
"""
