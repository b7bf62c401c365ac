"""Builds an engine and runs it for asyncio callers, in a thread or in a process of its own.

It may import everything except `diagnostics`.
"""
