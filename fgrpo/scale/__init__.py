"""Several processes, TRL, speed and memory: see README.md."""
