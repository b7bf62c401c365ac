"""Models that are found by name: the default one, aliases, and those on this machine."""
