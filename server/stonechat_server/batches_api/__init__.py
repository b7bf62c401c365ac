"""`/v1/batches`: reads a file of requests, runs them behind all others, and writes the results."""
