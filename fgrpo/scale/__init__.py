"""Several processes, TRL, speed and memory."""
