"""Every misaligned checkpoint of the zoo is put right, every stale one mended, every other refused or left alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fixtures.zoo import ZOO, Case, build_case
from fixtures.zoo.cuts import ALL, FIRST, GROUPED_24X6, MIDDLE, SIX, THREE, attention_in, groups, mlp
from fixtures.zoo.sound import SILENT
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.repair import RepairReport, repair
from gqacheck.result import ClaimState
from gqacheck.runtime.load import load_model
from gqacheck.runtime.weights import WeightReader

FIXTURES = Path(__file__).parents[2] / "fixtures"
ZOO_BY_NAME = {case.name: case for case in ZOO}
HALVES = [head for head in range(32) if head % 4 in (0, 3)]
RIGHT = {
    "llama-truncated-bin": attention_in(FIRST, GROUPED_24X6, SIX),
    "qwen2-truncated-folder": groups(THREE, ALL),
    "llama-o-first-columns": attention_in(FIRST, GROUPED_24X6, SIX),
    "llama-v-first-heads": attention_in(FIRST, GROUPED_24X6, SIX),
    "llama-uneven-groups": attention_in(ALL, HALVES, range(8)),  # any two of each group's four are a correct cut
    "llama-up-first-channels": mlp(0.75, MIDDLE),
}
"""The surgery that each silent case should have been."""
CHOSEN = ("llama-uneven-groups",)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repair-zoo")


def mend(case: Case, zoo: Path, tmp_path: Path, *, parent: bool, **options: Any) -> RepairReport:
    path = build_case(case, zoo)
    return repair(
        path, base=FIXTURES / case.base if parent else None, out=tmp_path / "fixed", **case.options, **options
    )


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(str(path))
    with WeightReader() as reader:
        return {name: reader.read(info) for name, info in checkpoint.tensors.items() if "inv_freq" not in name}


def perplexity(path: str | Path, base: str) -> float:
    """Per token over the first 4096 tokens of the held-out text, in windows of 256."""
    model, _ = load_model(path, tokenizer=FIXTURES / base)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / base)
    ids = torch.tensor(tokenizer((FIXTURES / "heldout.txt").read_text(encoding="utf-8"))["input_ids"][:4096])
    with torch.no_grad():
        logits = model(input_ids=ids.view(-1, 256), use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.view(-1, 256)[:, 1:].flatten())
    return math.exp(float(losses))


def test_every_silent_case_is_expected() -> None:
    assert {case.name for case in SILENT} == set(RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_misaligned_case_is_put_right(name: str, zoo: Path, tmp_path: Path) -> None:
    case = ZOO_BY_NAME[name]
    report = mend(case, zoo, tmp_path, parent=True)
    assert report.exit_code == 0, report.refused
    assert report.after is not None
    assert {claim.name: claim.state for claim in report.after.claims if claim.name != "runtime"} == {
        "shapes": ClaimState.PASS, "pairing": ClaimState.PASS,
    }  # fmt: skip
    assert report.reference is not None
    assert report.reference.equal
    assert not report.reference.expanded  # it is the parent bit by bit, so the masked parent itself was run
    right = Case("right", "the cut done right", case.base, RIGHT[name], case.save)
    correct = weights(build_case(right, tmp_path))
    repaired = weights(report.out or "")
    if name not in CHOSEN:
        assert repaired.keys() == correct.keys()
        assert [n for n in correct if not torch.equal(correct[n], repaired[n])] == []
    else:
        assert {n: t.shape for n, t in repaired.items()} == {n: t.shape for n, t in correct.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if "truncated" in name else pytest.param(name, marks=pytest.mark.thorough) for name in RIGHT]
)
def test_perplexity_of_the_repaired_case_is_that_of_the_correct_cut(name: str, zoo: Path, tmp_path: Path) -> None:
    case = ZOO_BY_NAME[name]
    report = mend(case, zoo, tmp_path, parent=True)
    right = Case("right", "the cut done right", case.base, RIGHT[name], case.save)
    correct = perplexity(build_case(right, tmp_path), case.base)
    broken, repaired = perplexity(build_case(case, zoo), case.base), perplexity(report.out or "", case.base)
    allowed = 1.15 if name in CHOSEN else 1 + 1e-6
    assert repaired <= correct * allowed, (broken, repaired, correct)
    assert broken > 1.02 * repaired


STALE = {
    "llama-features-stale": {"GQA201", "GQA202"},
    "qwen2-head-counts-stale": {"GQA203"},
    "llama-groups-attribute-stale": {"GQA105", "GQA204", "GQA403"},
    "llama-layer-dropped-bin": {"GQA207", "GQA401"},
    "llama-layer-repeated-bin": {"GQA207"},
    "qwen2-config-heads-stale": {"GQA403", "GQA111"},
    "llama-config-mlp-stale": {"GQA404"},
    "llama-uniform-bin-config-stale": {"GQA403", "GQA404"},
    "llama-24x6-folder": {"GQA406"},
    "llama-16x4-no-head-dim": {"GQA407"},
    "qwen2-21x3-no-head-dim": {"GQA407", "GQA111"},
    "qwen2-hidden-bin": {"GQA407"},
    "llama-layer-count": {"GQA401"},
    "llama-layer-gap": {"GQA402"},
    "qwen2-layer-types-stale": {"GQA411"},
    "llama-tied-by-config": {"GQA412"},
    "llama-oversized": {"GQA013", "GQA403"},
    "qwen2-shard-misplaced": {"GQA014"},
    "llama-groups-bin": {"GQA206"},
}


def serious(report: Any) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity in ("error", "warning")}


@pytest.mark.parametrize("name", STALE)
def test_stale_case_is_mended_without_a_parent_and_computes_the_same(name: str, zoo: Path, tmp_path: Path) -> None:
    case = ZOO_BY_NAME[name]
    report = mend(case, zoo, tmp_path, parent=False)
    assert report.exit_code == 0, report.refused
    assert STALE[name] <= serious(report.before)
    assert report.after is not None
    assert STALE[name].isdisjoint(serious(report.after))
    before, after = weights(report.path), weights(report.out or "")
    old = sorted(before.values(), key=lambda t: (t.shape, t.sum().item()))
    new = sorted(after.values(), key=lambda t: (t.shape, t.sum().item()))
    assert len(old) == len(new)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(old, new, strict=True))
    assert not (tmp_path / "fixed").is_symlink()


@pytest.mark.parametrize(
    "name", ["llama-24x6-folder", "qwen2-config-heads-stale", "llama-layer-gap", "llama-tied-by-config"]
)
def test_mended_folder_loads_with_transformers_and_computes_what_the_tensors_say(
    name: str, zoo: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    report = mend(ZOO_BY_NAME[name], zoo, tmp_path, parent=False)
    loaded, info = AutoModelForCausalLM.from_pretrained(report.out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    rebuilt, _ = load_model(report.out or "")
    ids = torch.arange(3, 60).view(1, -1)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, rebuilt(ids).logits)


@pytest.mark.parametrize("name", ["llama-truncated-bin", "llama-features-stale"])
def test_written_module_is_what_torch_load_gives_and_runs(name: str, zoo: Path, tmp_path: Path) -> None:
    report = mend(ZOO_BY_NAME[name], zoo, tmp_path, parent=True)
    stored = torch.load(
        Path(report.out or "") / "pytorch_model.bin", weights_only=False
    )  # our own file of a moment ago
    assert set(stored) == {"model", "tokenizer"}
    assert stored["tokenizer"]("a")["input_ids"]
    model = stored["model"].float().eval()
    rebuilt, _ = load_model(report.out or "")
    ids = torch.arange(3, 60).view(1, -1)
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, rebuilt(ids, use_cache=False).logits)


@pytest.mark.parametrize(
    "case",
    [case for case in ZOO if case.errors and case.name not in STALE and "shard" not in case.name],
    ids=lambda case: case.name,
)
def test_case_that_needs_a_parent_is_refused_without_one_and_nothing_is_written(
    case: Case, zoo: Path, tmp_path: Path
) -> None:
    report = mend(case, zoo, tmp_path, parent=False)
    assert (report.exit_code, report.out) == (3, None)
    assert {refusal.code for refusal in report.refused} <= case.errors | case.also
    assert all(refusal.sentence and "\n" not in refusal.sentence for refusal in report.refused)
    assert list(tmp_path.iterdir()) == []


WITH_PARENT = (
    "llama-31x7", "llama-30x6", "llama-kv-only", "qwen2-kv-only", "llama-q-only", "llama-k-not-v", "qwen2-v-not-k",
    "llama-o-not-cut", "qwen2-bias-not-cut", "qwen2-bias-lost", "llama-gate-not-up", "qwen2-down-not-cut",
    "llama-o-missing",
)  # fmt: skip


@pytest.mark.parametrize("name", WITH_PARENT)
def test_broken_shapes_are_mended_with_the_parent(name: str, zoo: Path, tmp_path: Path) -> None:
    report = mend(ZOO_BY_NAME[name], zoo, tmp_path, parent=True)
    assert report.exit_code == 0, report.refused
    assert report.reference is not None
    assert report.reference.equal


@pytest.mark.parametrize("case", [case for case in ZOO if not case.expected], ids=lambda case: case.name)
def test_sound_case_needs_nothing_and_nothing_is_written(case: Case, zoo: Path, tmp_path: Path) -> None:
    report = mend(case, zoo, tmp_path, parent=case not in SILENT)
    assert (report.exit_code, report.out, report.changes) == (0, None, ())
    assert list(tmp_path.iterdir()) == []


def test_layers_without_fault_stay_byte_for_byte(zoo: Path, tmp_path: Path) -> None:
    report = mend(ZOO_BY_NAME["llama-truncated-bin"], zoo, tmp_path, parent=True)
    before, after = weights(report.path), weights(report.out or "")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{index}.self_attn.{role}_proj.weight" for index in FIRST for role in ("q", "o")}


def test_folder_keeps_its_file_names_and_tokenizer(zoo: Path, tmp_path: Path) -> None:
    report = mend(ZOO_BY_NAME["qwen2-truncated-folder"], zoo, tmp_path, parent=True)
    source, out = Path(report.path), Path(report.out or "")
    assert {path.name for path in source.iterdir()} == {path.name for path in out.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (source / name).read_bytes() == (out / name).read_bytes()
    assert load_file(out / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    assert measure(open_checkpoint(str(out))).layers[0].attention.n_q_heads == 21
