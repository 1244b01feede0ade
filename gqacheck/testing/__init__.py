"""Public building blocks for tests: tiny checkpoints of every container, tiny models, and the contract of a pruner.

Importing this package imports neither torch nor hypothesis. ``sketch``, ``writers`` and ``cuts`` make checkpoints with
the standard library alone; the names below need ``pip install 'gqacheck[testing]'``::

    >>> from gqacheck.testing import PrunerContract
    >>> class TestMyPruner(PrunerContract):
    ...     def prune(self, model, request):
    ...         return my_pruner(model, ratio=request.ratio)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqacheck.testing.contract import PrunerContract, broken_properties
    from gqacheck.testing.models import GqaConfig, logits_apart, logits_of, token_ids
    from gqacheck.testing.requests import PruningRequest
    from gqacheck.testing.strategies import PruningCase, gqa_configs, gqa_models, pruning_cases, pruning_requests

_LAZY = {
    "GqaConfig": "models",
    "PrunerContract": "contract",
    "PruningCase": "strategies",
    "PruningRequest": "requests",
    "broken_properties": "contract",
    "gqa_configs": "strategies",
    "gqa_models": "strategies",
    "logits_apart": "models",
    "logits_of": "models",
    "pruning_cases": "strategies",
    "pruning_requests": "strategies",
    "token_ids": "models",
}

__all__ = [
    "GqaConfig",
    "PrunerContract",
    "PruningCase",
    "PruningRequest",
    "broken_properties",
    "gqa_configs",
    "gqa_models",
    "logits_apart",
    "logits_of",
    "pruning_cases",
    "pruning_requests",
    "token_ids",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'gqacheck.testing' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"gqacheck.testing.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        from gqacheck.errors import GqacheckError

        raise GqacheckError(f"gqacheck.testing.{name} needs hypothesis: pip install hypothesis") from error


def __dir__() -> list[str]:
    return __all__
