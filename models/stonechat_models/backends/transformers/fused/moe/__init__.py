"""Mixtures of experts: the router, and products of experts."""
