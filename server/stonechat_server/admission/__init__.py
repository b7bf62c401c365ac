"""Decides which requests run, wait or are refused: rate limits, the fair queue and deadlines.

May import `access` and the layers below it.
"""
