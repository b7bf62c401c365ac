"""What the routes of several endpoints share."""
