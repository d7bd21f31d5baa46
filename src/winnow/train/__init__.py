"""Training: one loop, its checkpoints, its health watch, and the worker process that runs it."""
