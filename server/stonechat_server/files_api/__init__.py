"""`/v1/files`: how an upload is read, and what clients receive."""
