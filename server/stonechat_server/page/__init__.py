"""The page at `/`: static files with no build step and no outside requests."""
