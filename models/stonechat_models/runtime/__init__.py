"""Builds an engine and runs it in a thread or in a process of its own, for asyncio callers.

May import everything but `diagnostics`.
"""
