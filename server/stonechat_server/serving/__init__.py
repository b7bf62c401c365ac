"""Runs one request against the engine, and runs the HTTP server itself from start to drain.

May import `streaming`, `observability` and what stands below them.
"""
