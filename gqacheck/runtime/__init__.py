"""Rebuild a checkpoint as a running model and measure it. The one part of the package that may import torch."""
