"""Child and parent weights -> where every head, channel and layer came from.

Exact matching needs the standard library alone; numpy is imported only where bits differ.
"""
