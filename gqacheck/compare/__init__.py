"""The table that people make by hand: checkpoints and saved reports side by side, and nothing in one row that is not
comparable. ``run`` is the whole way; ``group`` decides what shares a row; ``text``, ``markdown`` and ``json`` show it.
"""

from gqacheck.compare.facts import Table
from gqacheck.compare.run import compare

__all__ = ["Table", "compare"]
