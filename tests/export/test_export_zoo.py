"""The zoo: what is sound, legal or silently wrong is exported as it is; what is broken is refused by a rule's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import exported

from fixtures.zoo import ZOO, build_case
from gqacheck.export import CannotExport
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.runtime.rebuild import rebuild

NO_CONFIG = {"llama-compiled-state-dict", "llama-nonuniform-state-dict"}
FORCED = {
    "llama-30x6": "GQA105", "qwen2-kv-only": "GQA105", "llama-q-only": "GQA105",
    "llama-groups-attribute-stale": "GQA105",
}  # fmt: skip
REFUSED = {
    "llama-31x7": "GQA104", "llama-kv-only": "GQA104", "llama-k-not-v": "GQA103", "qwen2-v-not-k": "GQA103",
    "llama-o-not-cut": "GQA106", "qwen2-q-off-head": "GQA101", "llama-kv-off-head": "GQA102",
    "qwen2-bias-not-cut": "GQA108", "qwen2-bias-lost": "GQA108", "llama-no-heads": "GQA110",
    "llama-attention-hidden": "GQA107", "llama-mlp-hidden": "GQA303", "llama-gate-not-up": "GQA301",
    "qwen2-down-not-cut": "GQA302", "llama-norm-cut": "GQA409", "llama-norm-broadcast": "GQA409",
    "llama-vocabulary-embedding-only": "GQA408", "llama-head-missing": "GQA410", "llama-o-missing": "GQA410",
    "llama-shard-missing": "GQA014", "qwen2-shard-misplaced": "GQA014",
}  # fmt: skip
HEAD_DIM = {"qwen2-config-heads-stale": {"head_dim": 8}}
"""28 heads and 168 rows: 28 heads of 6, or 21 of 8 beside a stale config."""
OTHER_CLASS = {"llama-uniform-bin-config-stale", "llama-24x6-folder", "llama-oversized"}
EXPORTED = [case for case in ZOO if case.name not in NO_CONFIG | FORCED.keys() | REFUSED.keys()]


def ids_of(rows: int) -> torch.Tensor:
    return torch.randint(3, rows, (2, 20), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("case", EXPORTED, ids=lambda case: case.name)
def test_export_of_a_zoo_case_computes_what_the_checkpoint_computes(case: Any, stranger: Any, tmp_path: Path) -> None:
    source = build_case(case, tmp_path / "in")
    options = {**case.options, **HEAD_DIM.get(case.name, {})}
    report = exported(source, tmp_path / "out", **options)
    assert report.comparison.difference == 0.0
    assert (report.way == "other-class") == (case.name in OTHER_CLASS)
    assert not [finding for finding in report.after.findings if finding.severity == "error"]
    checkpoint = open_checkpoint(str(source))
    model = rebuild(checkpoint, measure(checkpoint, **options), dtype=torch.float32).model
    ids = ids_of(model.config.vocab_size)
    with torch.inference_mode():
        ours = model(input_ids=ids, use_cache=False).logits
    mask = torch.ones_like(ids).tolist()
    stranger("answers", folder=tmp_path / "out", ids=ids.tolist(), mask=mask, out=tmp_path / "theirs.pt")
    assert torch.equal(torch.load(tmp_path / "theirs.pt")["logits"], ours)


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("force", [False, True])
def test_export_of_a_broken_zoo_case_names_the_rule_and_writes_nothing(name: str, force: bool, tmp_path: Path) -> None:
    case = next(case for case in ZOO if case.name == name)
    source = build_case(case, tmp_path / "in")
    with pytest.raises(CannotExport, match=f"{REFUSED[name]} .*make something up"):
        exported(source, tmp_path / "out", force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", sorted(FORCED))
def test_export_of_a_ratio_that_nobody_stated_needs_force(name: str, tmp_path: Path) -> None:
    case = next(case for case in ZOO if case.name == name)
    source = build_case(case, tmp_path / "in")
    with pytest.raises(CannotExport, match=f"{FORCED[name]} .*--force exports it as it is"):
        exported(source, tmp_path / "out")
    report = exported(source, tmp_path / "out", force=True)
    assert report.comparison.difference == 0.0
    assert any(sentence.startswith(FORCED[name]) for sentence in report.notes)


def test_export_of_heads_whose_width_is_disputed_asks_for_it(tmp_path: Path) -> None:
    """Of 128 rows, 16 heads of 8 or 8 heads of 16: both make a folder that loads, and one of them is another model."""
    case = next(case for case in ZOO if case.name == "llama-16x4-no-head-dim")
    source = build_case(case, tmp_path / "in")
    for force in (False, True):
        with pytest.raises(CannotExport, match=r"head_dim is 16 by .* but 8 by .*--head-dim N"):
            exported(source, tmp_path / "out", force=force)
    assert exported(source, tmp_path / "out", head_dim=8).comparison.difference == 0.0


@pytest.mark.parametrize("name", sorted(NO_CONFIG))
def test_export_of_tensors_without_a_config_asks_for_one(name: str, tmp_path: Path) -> None:
    case = next(case for case in ZOO if case.name == name)
    source = build_case(case, tmp_path / "in")
    with pytest.raises(CannotExport, match="--config FILE"):
        exported(source, tmp_path / "out", **case.options)


def test_export_of_biases_that_only_some_projections_have_keeps_those_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    case = next(case for case in ZOO if case.name == "llama-flap-bin")
    report = exported(build_case(case, tmp_path / "in"), tmp_path / "out")
    assert any("that the stock class does not have: kept, as stored" in note for note in report.notes)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.self_attn.q_proj.bias" not in tensors
    assert tensors["model.layers.2.mlp.down_proj.bias"].any()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
