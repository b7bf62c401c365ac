"""What generates: engine, sampler and models. Knows no HTTP."""
