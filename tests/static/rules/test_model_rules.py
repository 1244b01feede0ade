"""The GQA3xx and GQA4xx rules together: healthy models, packed weights, hostile values, faults told only once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from bent import configured, cut, llama, mixed, narrow, renumbered, with_shape, without
from harness import check_wording, codes, findings, fires, golden, golden_names, make_subject, skips
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.checkpoint import Checkpoint, ConfigInfo, TensorInfo
from gqacheck.errors import NotACheckpoint
from gqacheck.geometry.facts import Expectations, Subject
from gqacheck.geometry.measure import measure
from gqacheck.rules.mlp import MLP_RULES
from gqacheck.rules.model import MODEL_RULES
from gqacheck.rules.rule import Finding
from gqacheck.rules.run import run_rules
from gqacheck.testing.sketch import sketch_llama
from gqacheck.testing.writers import tensor

CODES = tuple(f"GQA4{number:02}" for number in range(1, 15))

HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.sampled_from([1 << 41, -(1 << 41), 1 << 70, 1.5, float("nan"), float("inf"), "12", "", "\x1b[31m\n", (), (12,)]),
    st.tuples(st.integers(-1, 99), st.integers(-1, 99), st.integers(-1, 99)),
    st.dictionaries(
        st.sampled_from(["num_attention_heads", "intermediate_size", "a\nb"]), st.tuples(st.integers(0, 9))
    ),
)


KEYS = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "layer_types", "model_type",
    "gqacheck_layers", "num_experts", "num_experts_per_tok", "num_local_experts", "moe_intermediate_size", "auto_map",
    "n_shared_experts", "num_nextn_predict_layers", "attention_bias", "intermediate_size_mlp",
)  # fmt: skip


SUBJECTS = {
    name: make_subject(golden(name, live=live), container=container)
    for name, live, container in (
        ("llama", False, "folder"),
        ("qwen2_moe", False, "folder"),
        ("mixtral", True, "module"),
        ("phi3", True, "module"),
        ("gemma2", False, "folder"),
        ("stablelm", False, "folder"),
    )
}


def judged(checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Everything these rules say; what cannot be measured at all is not theirs to judge."""
    try:
        geometry = measure(checkpoint)
    except NotACheckpoint:
        return ()
    found, _ = run_rules(Subject(checkpoint, geometry), (*MLP_RULES, *MODEL_RULES))
    return found


def check_readable(found: Iterable[Finding]) -> None:
    for finding in found:
        check_wording(finding)
        for text in (finding.message, finding.consequence, finding.fix, finding.source):
            assert text.isprintable(), text
            assert len(text) < 1200, text


@pytest.mark.parametrize("name", golden_names())
def test_healthy_model_of_every_family_is_not_accused(name: str) -> None:
    rules = [*CODES, *(f"GQA30{number}" for number in range(1, 6))]
    for live, container in ((False, "folder"), (False, "state-dict"), (True, "module")):
        found = findings(golden(name, live=live), rules, container=container)
        assert not found, [(finding.code, finding.message) for finding in found]


def test_faults_that_explain_each_other_are_told_once() -> None:
    assert codes(renumbered({0: 0, 2: 2}), container="folder") >= {"GQA402"}
    assert "GQA401" not in codes(renumbered({0: 0, 2: 2}), container="folder")
    mine = set(CODES)
    assert codes(cut(9, 3), container="folder") & mine == {"GQA403", "GQA406"}
    assert codes(cut(8, 2), container="folder") & mine == {"GQA403"}
    assert codes(narrow(80), container="folder") & mine == {"GQA404"}
    assert codes(mixed(), container="folder") & mine == {"GQA405"}
    assert codes(without("lm_head"), container="folder") & mine == {"GQA410"}
    assert codes(with_shape("lm_head.weight", 60, 96), container="folder") & mine == {"GQA408"}


def test_what_a_missing_shard_took_is_not_told_again(tmp_path: Path) -> None:
    folder = sketch_llama(n_layers=4).write_folder(tmp_path / "model", shards=4)
    (folder / "model-00002-of-00004.safetensors").unlink()
    assert codes(folder) == {"GQA014"}
    index = folder / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    named["weight_map"] = {key: shard for key, shard in named["weight_map"].items() if "layers.1." not in key}
    index.write_text(json.dumps(named))
    assert codes(folder) == {"GQA014", "GQA402"}


def test_rules_without_a_config_say_that_they_need_one() -> None:
    for code in ("GQA401", "GQA403", "GQA404", "GQA407", "GQA411", "GQA412", "GQA413"):
        skips(llama(), code, needs="config", container="state-dict")
    fires(llama(), "GQA401", container="state-dict", expect=Expectations(layers=4))


def test_packed_weights_skip_shapes_but_not_the_config() -> None:
    sketch = renumbered({0: 0, 2: 2})
    configured(sketch, layer_types=["full_attention"] * 5, eos_token_id=9999)
    for path in [name.removesuffix(".weight") for name in sketch.tensors if "_proj" in name]:
        sketch.drop(path)
        sketch.tensors[f"{path}.qweight"] = tensor((12, 96), "int32", parameter=True)
    for code in ("GQA403", "GQA404", "GQA405", "GQA407", "GQA408", "GQA409", "GQA410", "GQA414"):
        skips(sketch, code, needs="dense-weights", container="folder")
    for code in ("GQA402", "GQA411", "GQA413"):
        fires(sketch, code, container="folder")
    fires(configured(sketch, num_attention_heads=9), "GQA406", container="folder", says=["config.json num_attention"])
    fires(configured(sketch, num_hidden_layers=9), "GQA401", container="folder")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SUBJECTS)), st.dictionaries(st.sampled_from(KEYS), HOSTILE, max_size=5))
def test_rules_on_a_hostile_config_never_raise(name: str, changes: dict[str, object]) -> None:
    checkpoint = SUBJECTS[name].checkpoint
    assert checkpoint.config is not None
    values = {**checkpoint.config.values, **changes}
    check_readable(judged(replace(checkpoint, config=ConfigInfo(values, "config.json"))))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.data())
def test_rules_on_any_shapes_never_raise(data: st.DataObject) -> None:
    checkpoint = SUBJECTS[data.draw(st.sampled_from(sorted(SUBJECTS)))].checkpoint
    names = data.draw(st.lists(st.sampled_from(sorted(checkpoint.tensors)), max_size=6, unique=True))
    tensors = dict(checkpoint.tensors)
    for name in names:
        shape = data.draw(st.none() | st.lists(st.integers(0, 200), max_size=4).map(tuple))
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = TensorInfo(name, shape, data.draw(st.sampled_from(["float16", "float32"])), shape)
    check_readable(judged(replace(checkpoint, tensors=tensors)))
