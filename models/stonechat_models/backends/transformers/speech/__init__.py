"""Models that transcribe speech, and do nothing else."""
