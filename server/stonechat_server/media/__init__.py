"""Images and audio of a request: where they come from, bounds, and the way to the processor.

May import `structured` and the layers below it.
"""
