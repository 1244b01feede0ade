"""The recipes of docs/how-to/before-training.md, run with stand-ins that have the other tools' signatures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import gqacheck
from gqacheck.integrations.transformers import PreflightCallback

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from docs.console import FENCE  # noqa: E402

PAGE = (ROOT / "docs" / "how-to" / "before-training.md").read_text(encoding="utf-8")
RECIPES = [match["body"] for match in FENCE.finditer(PAGE) if match["info"].strip() == "python"]


def played(word: str, **names: Any) -> dict[str, Any]:
    """What is defined after the one recipe with this word in it was run."""
    (body,) = [body for body in RECIPES if word in body]
    exec(body, names)  # noqa: S102 - a page of this repository
    return names


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
    vars(sys.modules[name]).update(names)


def test_trainer_gets_the_callback_before_it_trains() -> None:
    happened: list[Any] = []
    trainer = SimpleNamespace(add_callback=happened.append, train=lambda: happened.append("trained"))
    played("add_callback(", trainer=trainer)
    assert isinstance(happened[0], PreflightCallback)
    assert (happened[0].base, happened[1:]) == ("parent/", ["trained"])


def test_trl_recipe_hands_the_callback_to_the_trainer() -> None:
    given: dict[str, Any] = {}

    class SFTTrainer:
        def __init__(self, model: Any, *, peft_config: Any, train_dataset: Any, callbacks: list[Any]) -> None:
            given["callbacks"] = callbacks

        def train(self) -> None:
            given["trained"] = True

    played("SFTTrainer", SFTTrainer=SFTTrainer, model=0, lora=0, data=0)
    assert isinstance(given["callbacks"][0], PreflightCallback)
    assert given["trained"]


def test_llama_factory_recipe_hands_the_callback_to_run_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_exp(args: dict[str, Any] | None = None, callbacks: list[Any] | None = None) -> None:
        given.extend(callbacks or ())

    module(monkeypatch, "llamafactory.train.tuner", run_exp=run_exp)
    played("run_exp")
    assert [type(callback) for callback in given] == [PreflightCallback]


def test_axolotl_recipe_is_a_plugin_that_returns_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    class BasePlugin:
        def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
            return []

    module(monkeypatch, "axolotl.integrations.base", BasePlugin=BasePlugin)
    plugin = played("BasePlugin", __name__="preflight")["Preflight"]()
    assert isinstance(plugin, BasePlugin)
    assert [type(one) for one in plugin.add_callbacks_pre_trainer(cfg={}, model=None)] == [PreflightCallback]


def test_own_loop_recipe_asks_for_the_pairing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(gqacheck, "assert_sound", lambda model, **options: given.update(options), raising=False)
    played("assert_sound", model=0)
    assert given == {"base": "parent/", "require": ("shapes", "pairing")}
