"""gqacheck: is a pruned grouped-query-attention checkpoint sound, and does it really run?

The static check imports neither torch nor numpy, reads the headers only and executes nothing::

    >>> import gqacheck
    >>> report = gqacheck.check("pytorch_model.bin")
    >>> [finding.code for finding in report.findings]
    ['GQA104', 'GQA201']

(PYTEST_DONT_REWRITE: nothing here asserts, and a program that runs pytest gets no warning for having imported it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqacheck.api import assert_sound, check, check_model
    from gqacheck.export.live import export_model
    from gqacheck.formats import open_checkpoint
    from gqacheck.runtime.load import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "assert_sound", "check", "check_model", "export_model", "load_model", "open_checkpoint"]

_LAZY = {
    "check": "gqacheck.api",
    "check_model": "gqacheck.api",
    "assert_sound": "gqacheck.api",
    "open_checkpoint": "gqacheck.formats",
    "load_model": "gqacheck.runtime.load",
    "export_model": "gqacheck.export.live",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gqacheck' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
