"""Runs one request against the engine, and runs the HTTP server itself from start to drain.

May import `streaming`, `observability` and the layers below them.
"""
