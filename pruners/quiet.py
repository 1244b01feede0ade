"""A model looked at without leaving traces, and libraries that keep their remarks to themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Within, dropout is off; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def silent(*names: str) -> Iterator[None]:
    """Within, these loggers say nothing."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def experts_one_by_one(model: Any) -> Iterator[None]:
    """Within, stacked experts are run in a loop, so that what each of them is given can be seen."""
    before = getattr(getattr(model, "config", None), "_experts_implementation", None)
    stacked = any(parameter.dim() == 3 and "experts" in name for name, parameter in model.named_parameters())
    if not stacked or before in (None, "eager"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
