"""Which requests run now, wait or are refused: rate limits, the fair queue and deadlines.

May import `access` and what stands below it.
"""
