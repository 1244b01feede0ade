"""Checkpoints written so that plain transformers loads them: out of the pickle, streamed, verified before they appear.

``run`` is the whole way; ``source`` looks at what is exported, ``form`` and ``fit`` decide what stands in the folder,
``content`` and ``stream`` write it, ``verify`` holds it against the source. ``code`` makes the modelling file,
``pad`` adds zeros where no such file shall be needed. ``live`` does the same for a model in memory.
"""

from gqacheck.export.facts import CannotExport, Comparison, ExportReport, Padding
from gqacheck.export.live import export_model
from gqacheck.export.run import export

__all__ = ["CannotExport", "Comparison", "ExportReport", "Padding", "export", "export_model"]
