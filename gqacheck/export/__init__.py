"""Checkpoints written so that plain transformers loads them: out of the pickle, streamed, verified before they appear.

``run`` is the whole way; ``source`` looks at what is exported, ``form`` and ``fit`` decide what stands in the folder,
``content`` and ``stream`` write it, ``verify`` holds it against the source. ``code`` makes the modelling file.
"""

from gqacheck.export.facts import CannotExport, Comparison, ExportReport
from gqacheck.export.run import export

__all__ = ["CannotExport", "Comparison", "ExportReport", "export"]
