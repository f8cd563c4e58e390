"""A run's folder: checkpoints, resume, signals, traces."""
