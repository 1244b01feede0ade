"""Rules: pure functions from a Subject to violations. ``RULES`` is the whole list, in order of code."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from gqacheck.rules.rule import Rule


def _join() -> tuple[Rule, ...]:
    found: list[Rule] = []
    for module, name in (
        ("files", "FILE_RULES"),
        ("attention", "ATTENTION_RULES"),
        ("modules", "MODULE_RULES"),
        ("mlp", "MLP_RULES"),
        ("model", "MODEL_RULES"),
        ("runtime", "RUNTIME_RULES"),
    ):
        if find_spec(f"gqacheck.rules.{module}"):
            found.extend(getattr(import_module(f"gqacheck.rules.{module}"), name, ()))
    return tuple(found)


RULES: tuple[Rule, ...] = _join()
