"""What one report says of one part: which findings are whose, and when nothing found is no pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plugin_repository import broken_sketch
from report_everything import everything

from gqacheck.plugin.asked import Wanted
from gqacheck.plugin.numbers import numbers
from gqacheck.plugin.plan import Part, Plan, as_text, from_text, make_plans
from gqacheck.plugin.shared import make_data
from gqacheck.plugin.verdict import failure, not_checked
from gqacheck.report.json import checkpoint_json
from gqacheck.testing.cuts import take_heads
from gqacheck.testing.sketch import Sketch, sketch_llama


def planned(path: Path, **given: Any) -> Plan:
    return make_plans([Wanted(str(path), given)], str(path.parent))[0]


def told(plan: Plan, data: dict[str, Any]) -> dict[str, str]:
    """What becomes of every part: the code that fails it, why it is skipped, or "" for a pass."""
    return {part.name: failure(plan, part, data).split("\n")[0] or not_checked(plan, part, data) for part in plan.parts}


def finding(data: dict[str, Any], **changes: Any) -> None:
    data["findings"].append({**data["findings"][0], "fails": True, "known": False, **changes})


@pytest.fixture
def sound(tmp_path: Path) -> tuple[Plan, dict[str, Any]]:
    plan = planned(sketch_llama(n_layers=10).write_module(tmp_path / "sound.bin"))
    return plan, make_data(plan.wanted)


def test_finding_without_a_layer_fails_the_first_range_of_its_group(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    finding(data, code="GQA105", layers=[])
    failed = [part.name for part in plan.parts if failure(plan, part, data)]
    assert failed == ["GQA1-attention[layers 00-07]"]


@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({"code": "GQA104", "layers": [3, 9]}, ["GQA1-attention[layers 00-07]", "GQA1-attention[layers 08-09]"]),
        ({"code": "GQA301", "layers": [9]}, ["GQA3-mlp[layers 08-09]"]),
        ({"code": "GQA401", "layers": [77]}, ["GQA4-model"]),
        ({"code": "GQA104", "layers": [77]}, ["GQA0-file"]),  # no part covers these: the file changed
        ({"code": "GQA601", "layers": [0]}, ["GQA0-file"]),
        ({"code": "GQA104", "layers": [3], "known": True}, []),
        ({"code": "GQA104", "layers": [3], "fails": False}, []),
    ],
    ids=str,
)
def test_every_failing_finding_belongs_to_some_part(
    changes: dict[str, Any], owner: list[str], sound: tuple[Plan, dict[str, Any]]
) -> None:
    plan, data = sound
    finding(data, **changes)
    assert [part.name for part in plan.parts if failure(plan, part, data)] == owner


def test_run_that_could_not_be_made_fails_its_own_part_too(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    data |= {"exit_code": 3, "error": "there is no tokenizer"}
    assert failure(plan, Part("GQA7"), data) == "could not check: there is no tokenizer"
    assert failure(plan, Part("GQA0"), data) == "could not check: there is no tokenizer"
    assert failure(plan, Part("GQA4"), data) == ""


def test_claim_that_was_not_checked_passes_no_part_of_it(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    data["claims"]["shapes"] = "not-checked"
    data["claim_details"]["shapes"]["reason"] = "three of them"
    skipped = [part.name for part in plan.parts if not_checked(plan, part, data) == "not checked: three of them"]
    assert skipped == [part.name for part in plan.parts if part.group != "GQA0"]


def test_group_of_which_no_rule_ran_is_skipped(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    data["skipped"] = [
        {"code": f"GQA30{n}", "needs": "experts", "reason": "nothing here"} for n in range(data["rules"]["GQA3"])
    ]
    assert not_checked(plan, Part("GQA3", 0, 7), data) == "not checked: nothing here"
    assert not_checked(plan, Part("GQA1", 0, 7), data) == ""
    data["skipped"].pop()
    assert not_checked(plan, Part("GQA3", 0, 7), data) == ""


@pytest.mark.parametrize(
    ("needs", "reason", "says"),
    [
        ("head-dim", "nothing says how wide", "GQA304: nothing says how wide"),
        ("repair", "the rule itself failed", "GQA304: the rule itself failed"),
        ("selection", "not in --select", "GQA304: not in --select"),
        ("selection", "ignored by --ignore", ""),
        ("biases", "there are none", ""),
    ],
)
def test_group_is_skipped_for_a_rule_that_wanted_facts_and_not_for_parts_that_are_not_there(
    needs: str, reason: str, says: str, sound: tuple[Plan, dict[str, Any]]
) -> None:
    plan, data = sound
    data["skipped"].append({"code": "GQA304", "needs": needs, "reason": reason})
    assert not_checked(plan, Part("GQA3", 8, 9), data) == (says and f"not checked: {says}")


def test_heads_that_cannot_be_counted_are_no_pass_beside_another_error(tmp_path: Path) -> None:
    sketch = broken_sketch()
    plan = planned(sketch.write_state_dict(tmp_path / "broken.bin"))
    data = make_data(plan.wanted)
    assert data["claims"]["shapes"] == "fail"
    found = told(plan, data)
    assert found["GQA3-mlp[layers 08-09]"] == "ERROR GQA301 gate-up-mismatch"
    assert found["GQA3-mlp[layers 00-07]"] == ""
    for part in ("GQA1-attention[layers 00-07]", "GQA1-attention[layers 08-09]"):
        assert found[part].startswith("not checked: layer ")
        assert "head_dim is not known" in found[part]


def test_heads_that_some_layers_do_not_show_are_skipped_there(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    data["geometry"]["layers"][8]["head_dim"] = None
    assert not_checked(plan, Part("GQA1", 0, 7), data) == ""
    assert "layer 8: head_dim is not known" in not_checked(plan, Part("GQA1", 8, 9), data)
    data["geometry"]["layers"][1]["attention"] = "mla"
    assert "layer 1: latent attention" in not_checked(plan, Part("GQA1", 0, 7), data)


def test_family_that_is_not_known_is_no_pass_beside_another_error(sound: tuple[Plan, dict[str, Any]]) -> None:
    plan, data = sound
    data["claims"]["shapes"] = "fail"
    data["family_known"] = False
    assert "the model family is not known" in not_checked(plan, Part("GQA4"), data)


def stranger_above(layer: int, parent: Sketch) -> Sketch:
    """The parent with its layers from ``layer`` on replaced by another model's."""
    other = sketch_llama(n_layers=parent.config["num_hidden_layers"], seed=9)
    child = parent.copy()
    for name, tensor in other.tensors.items():
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= layer:
            child.tensors[name] = tensor
    return child


@pytest.mark.parametrize("regrouped", [True, False])
def test_layers_that_were_not_compared_are_skipped_and_the_others_judged(regrouped: bool, tmp_path: Path) -> None:
    parent = sketch_llama(n_layers=12, seed=1)
    parent.write_folder(tmp_path / "parent")
    child = stranger_above(8, parent)
    for layer in range(8):
        take_heads(child, layer, q=range(8), kv=[0, 1] if not (regrouped and layer == 0) else [0, 2])
    plan = planned(child.write_module(tmp_path / "child.bin"), base=str(tmp_path / "parent"))
    found = told(plan, make_data(plan.wanted))
    first, second = found["GQA6-lineage[layers 00-07]"], found["GQA6-lineage[layers 08-11]"]
    assert first == ("ERROR GQA601 head-regrouped" if regrouped else "")
    assert second.startswith("not checked: 0 of 4 layers compared: layer 8: ")


def test_unreadable_at_collection_stands_for_every_claim(tmp_path: Path) -> None:
    path = tmp_path / "late.bin"
    plan = planned(path)
    assert [part.name for part in plan.parts] == ["GQA0-file"]
    broken_sketch().write_module(path)
    assert "GQA301" in told(plan, make_data(plan.wanted))["GQA0-file"]
    sketch_llama(n_layers=2).write_module(path)
    assert told(plan, make_data(plan.wanted)) == {"GQA0-file": ""}
    based = Plan(Wanted(str(path), {"base": str(path)}), plan.name, None, plan.parts)
    assert "not checked: " in told(based, make_data(based.wanted))["GQA0-file"]


def test_plans_survive_the_way_to_a_worker(tmp_path: Path) -> None:
    plans = make_plans([Wanted(f"{tmp_path}/lat\udcff.bin", {"ppl": ("smoke", "a.txt"), "seed": 3}, "b")], "/")
    text = as_text(plans)
    assert text.isascii()
    assert from_text(text) == plans


def test_numbers_of_a_run_have_a_name_each() -> None:
    data = checkpoint_json(everything())
    found = numbers(Part("GQA7"), data)
    for word in ("perplexity ", " ratio", " rep-4", " zlib ratio", "consistency ", "induction drop"):
        assert any(word in name for name in found), word
    assert all(value is not None for value in found.values())
    assert numbers(Part("GQA3"), data) == {}
