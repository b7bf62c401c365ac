"""Images, audio and videos of a request: their sources, bounds, and the way to the processor.

May import `structured` and the layers below it.
"""
