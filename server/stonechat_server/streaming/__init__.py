"""The way out: turns engine output into chunks, and chunks into a stream or one plain answer.

May import `request` and the layers below it.
"""
