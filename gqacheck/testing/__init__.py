"""Public building blocks for tests: tiny checkpoints of every container, made with the standard library alone."""
