"""What the pytest plugin does once something is asked of it."""
