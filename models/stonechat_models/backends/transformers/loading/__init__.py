"""From files to a model that computes steps: its weights, their precision, its checks."""
