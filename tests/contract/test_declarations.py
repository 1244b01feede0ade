"""What a subclass of ``PrunerContract`` may say of itself, and whose fault it is where it says something else."""

from __future__ import annotations

from typing import Any

import pytest
from own_pruners import Guided

from gqacheck.errors import MissingDependency, UsageError
from gqacheck.testing import PrunerContract, PruningRequest, broken_properties
from gqacheck.testing.declared import declared_by


def test_pruner_without_a_prune_method_is_told_what_to_write() -> None:
    class Empty(PrunerContract):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty needs a method prune\(self, model, request\)"):
        Empty().test_pruned_model_trains()


def test_cases_of_a_deep_run_are_more_and_a_word_for_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Counted(Guided):
        families = ("llama",)
        examples = 2

        def prune(self, model: Any, request: PruningRequest) -> Any:
            nonlocal calls
            calls += 1
            return super().prune(model, request)

    monkeypatch.delenv("GQACHECK_CASES", raising=False)
    Counted().test_shapes_attributes_and_config_agree()
    quick, calls = calls, 0
    monkeypatch.setenv("GQACHECK_CASES", "400")
    Counted().test_shapes_attributes_and_config_agree()
    assert (quick, calls) == (2, 20)
    monkeypatch.setenv("GQACHECK_CASES", "many")
    with pytest.raises(UsageError, match="GQACHECK_CASES is 'many'"):
        Counted().test_shapes_attributes_and_config_agree()


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [
        ("parts", ("heads",), r"is \('heads',\): it must name one or more among kv_groups, queries, mlp"),
        ("parts", (), r"is \(\): it must name one or more among kv_groups"),
        ("parts", "ml", "it must name one or more among kv_groups"),
        ("parts", None, "it must name one or more among kv_groups"),
        ("parts", 3, "it must name one or more among kv_groups"),
        ("families", "lama", "is 'lama': it must name one or more among llama, qwen2, qwen3"),
        ("families", (), "it must name one or more among llama"),
        ("ratios", ((0, 3),), r"is \(\(0, 3\),\): it must hold pairs of query heads per KV head and KV heads, such as"),
        ("ratios", (4, 3), "it must hold pairs"),
        ("ratios", ((4, 3), (2,)), "it must hold pairs"),
        ("ratios", ((True, 3),), "it must hold pairs"),
        ("ratios", "4:3", "it must hold pairs"),
        ("ratios", (), "it must hold pairs"),
        ("tolerated", ("GQA999",), "it must hold names that `gqacheck rules` lists"),
        ("tolerated", None, "it must hold names that"),
        ("refusals", ("ValueError",), "it must be exception classes"),
        ("refusals", (ValueError(),), "it must be exception classes"),
        ("examples", 0, "it must be a whole number from 1 up"),
        ("examples", "12", "it must be a whole number from 1 up"),
        ("rounding", 0, "it must be a number above 0"),
        ("rounding", float("nan"), "it must be a number above 0"),
        ("layer_ranges", "no", "is 'no': it must be True or False"),
        ("in_place", 0, "it must be True or False"),
    ],
)
def test_declaration_that_says_nothing_is_a_sentence_and_no_fault_of_the_pruner(
    attribute: str, value: Any, rule: str
) -> None:
    wrong = type("Wrong", (Guided,), {attribute: value})
    with pytest.raises(UsageError, match=rf"^Wrong\.{attribute} .*{rule}"):
        broken_properties(wrong)
    with pytest.raises(UsageError, match=rule):
        wrong().test_shapes_attributes_and_config_agree()
    with pytest.raises(UsageError, match=rule):
        wrong().test_pruned_model_trains()


def test_one_name_is_read_as_one_name() -> None:
    class One(PrunerContract):
        parts: Any = "mlp"
        families: Any = "llama"
        tolerated: Any = "GQA206"
        refusals: Any = ValueError
        ratios: Any = ([4, 3],)

    declared = declared_by(One)
    assert (declared.parts, declared.families, declared.tolerated) == (("mlp",), ("llama",), ("GQA206",))
    assert (declared.refusals, declared.ratios) == ((ValueError,), ((4, 3),))
    asked = []

    class Pruner(Guided, One):
        parts, families, tolerated, refusals, ratios = "mlp", "llama", "GQA206", ValueError, ([4, 3],)
        examples = 2

        def prune(self, model: Any, request: PruningRequest) -> Any:
            asked.append((model.config.model_type, request.parts))
            return super().prune(model, request)

    Pruner().test_shapes_attributes_and_config_agree()
    assert set(asked) == {("llama", ("mlp",))}


def test_word_for_a_number_of_cases_breaks_no_property(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQACHECK_CASES", "many")
    with pytest.raises(UsageError, match="GQACHECK_CASES is 'many'"):
        broken_properties(Guided)


def test_what_is_not_installed_breaks_no_property() -> None:
    class Lacking(Guided):
        def prune(self, model: Any, request: PruningRequest) -> Any:
            raise MissingDependency("cutting", "prune")

    with pytest.raises(MissingDependency, match=r"\[prune\]"):
        broken_properties(Lacking)


def test_usage_error_of_a_pruner_is_the_pruners_own() -> None:
    class Own(Guided):
        examples = 1

        def prune(self, model: Any, request: PruningRequest) -> Any:
            raise UsageError("no such strategy")

    assert broken_properties(Own)["pruned_model_trains"] == "UsageError: no such strategy"


def test_module_that_is_no_language_model_is_the_pruners_fault() -> None:
    from transformers import LlamaForSequenceClassification

    class Classifying(Guided):
        examples = 1

        def prune(self, model: Any, request: PruningRequest) -> Any:
            child = super().prune(model, request)
            other = LlamaForSequenceClassification(child.config)
            other.model = child.model
            return other.eval()

    told = "could not be run in several ways: a LlamaForSequenceClassification cannot be run"
    with pytest.raises(pytest.fail.Exception, match=told):
        Classifying().test_every_way_of_running_it_agrees()
