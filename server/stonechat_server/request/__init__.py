"""The way in: reads a body, checks its fields, and prepares the prompt and sampling parameters.

May import `structured` and the layers below it.
"""
