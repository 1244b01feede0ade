"""Checkpoint -> Geometry: what each layer measures, by role."""
