"""The page at `/`: static files. They need no build step and no other host."""
