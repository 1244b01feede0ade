"""Reference pruners for GQA models: a plan can only say cuts in which every KV head keeps its own query heads.

    >>> model, tokenizer = gqacheck.load_model("parent/")                       # doctest: +SKIP
    >>> shape = pruners.dissect(model).shape
    >>> batches = pruners.calibration_batches(tokenizer, text)
    >>> chosen = pruners.select(shape, pruners.taylor(model, batches), pruners.Request(ratio=0.25))
    >>> pruners.prune(model, chosen.plan)
    >>> gqacheck.export_model(model, "pruned/", tokenizer=tokenizer)

Importing this package imports no torch; the command is ``gqaprune`` (``pruners.cli``). (PYTEST_DONT_REWRITE: as in
``gqacheck``, nothing here asserts.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruners.anatomy import CannotPrune, dissect
    from pruners.calibration import CalibrationError, calibration_batches, calibration_text
    from pruners.compensate import compensate_biases
    from pruners.dependency import prune_by_graph
    from pruners.importance import (
        CannotScore,
        Importance,
        block_influence,
        fluctuation,
        magnitude,
        random_importance,
        taylor,
        wanda,
    )
    from pruners.plan import KvGroup, LayerPlan, LayerShape, ModelShape, PlanError, PruningPlan, whole_groups
    from pruners.plan_file import plan_from_json, plan_to_json, read_plan
    from pruners.reconstruction import reconstruct
    from pruners.request import Request, Selection
    from pruners.select_by_error import least_squares_error
    from pruners.selection import for_parameters, select, select_in_steps
    from pruners.surgery import prune

_LAZY = {
    "CannotPrune": "anatomy",
    "dissect": "anatomy",
    "CalibrationError": "calibration",
    "calibration_batches": "calibration",
    "calibration_text": "calibration",
    "prune_by_graph": "dependency",
    "CannotScore": "importance",
    "Importance": "importance",
    "block_influence": "importance",
    "fluctuation": "importance",
    "magnitude": "importance",
    "random_importance": "importance",
    "taylor": "importance",
    "wanda": "importance",
    "KvGroup": "plan",
    "LayerPlan": "plan",
    "LayerShape": "plan",
    "ModelShape": "plan",
    "PlanError": "plan",
    "PruningPlan": "plan",
    "whole_groups": "plan",
    "plan_from_json": "plan_file",
    "plan_to_json": "plan_file",
    "read_plan": "plan_file",
    "compensate_biases": "compensate",
    "reconstruct": "reconstruction",
    "Request": "request",
    "Selection": "request",
    "for_parameters": "selection",
    "select": "selection",
    "select_in_steps": "selection",
    "least_squares_error": "select_by_error",
    "prune": "surgery",
}

__all__ = [
    "CalibrationError",
    "CannotPrune",
    "CannotScore",
    "Importance",
    "KvGroup",
    "LayerPlan",
    "LayerShape",
    "ModelShape",
    "PlanError",
    "PruningPlan",
    "Request",
    "Selection",
    "block_influence",
    "calibration_batches",
    "calibration_text",
    "compensate_biases",
    "dissect",
    "fluctuation",
    "for_parameters",
    "least_squares_error",
    "magnitude",
    "plan_from_json",
    "plan_to_json",
    "prune",
    "prune_by_graph",
    "random_importance",
    "read_plan",
    "reconstruct",
    "select",
    "select_in_steps",
    "taylor",
    "wanda",
    "whole_groups",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pruners' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"pruners.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        from gqacheck.errors import MissingDependency

        raise MissingDependency(f"pruners.{name}", "run") from error


def __dir__() -> list[str]:
    return __all__
