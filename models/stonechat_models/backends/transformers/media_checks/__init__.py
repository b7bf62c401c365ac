"""Checks at load of whether a model's own code takes images and audio as packed steps give them."""
