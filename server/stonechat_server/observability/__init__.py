"""Metrics, traces, logs and the usage ledger. Nothing here changes an answer."""
