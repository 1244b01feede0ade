"""gqaprune from the command line to a folder that somebody else loads."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_ids, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

import gqacheck
from gqacheck.export import CannotExport, export_model
from pruners import LayerPlan, PruningPlan, dissect, prune, read_plan, whole_groups
from pruners.cli import main
from pruners.save import plan_json

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "export"))  # the stranger


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process with torch and transformers but neither gqacheck nor pruners."""
    from strangers import Stranger

    one = Stranger(tmp_path_factory.mktemp("stranger"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of 12 query and 3 KV heads with a tokenizer, as folders."""
    folder = tmp_path_factory.mktemp("parents")
    made = {}
    for family in ("llama", "qwen2_tied", "mixtral"):
        model = tiny_model(family)
        model.save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)
        made[family] = folder / family
    return made


def run(*argv: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main([str(word) for word in argv], out, err), out.getvalue(), err.getvalue()


def pruned(*argv: object) -> str:
    code, out, err = run(*argv)
    assert (code, err) == (0, ""), err
    return out


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=tiny_ids(), use_cache=False).logits


def test_trained_fixture_pruned_loads_with_a_stranger_and_is_the_plan_carried_out(
    tmp_path: Path, stranger: Any
) -> None:
    base, out = ROOT / "fixtures" / "qwen2-28x4", tmp_path / "out"
    said = pruned(base, out, "--strategy", "aggressive", "--num_examples", 4, "--seq-len", 64)
    assert "shapes   ok" in said
    assert "pairing  ok" in said
    assert f"next gqacheck {out} --base {base} --ppl" in said
    report = gqacheck.check(out, base=base, require=["shapes", "pairing"])
    assert (report.exit_code, [f.code for f in report.findings if f.severity.value == "error"]) == (0, [])
    plan = read_plan(out / "pruning_plan.json")
    assert report.checkpoint is not None
    assert report.checkpoint.parameters == plan.parameters < plan.parent.parameters
    model, _ = gqacheck.load_model(base)
    with torch.inference_mode():
        expected = prune(model, plan)(input_ids=tiny_ids(), use_cache=False).logits
    mask = torch.ones_like(tiny_ids())
    answer = str(tmp_path / "answer.pt")
    told = stranger("answers", folder=out, ids=tiny_ids().tolist(), mask=mask.tolist(), out=answer, dtype="float32")
    assert told["class"] == "PrunedQwen2ForCausalLM"
    assert torch.equal(torch.load(answer)["logits"], expected)
    assert stranger("write_text", folder=out, prompt="The model").startswith("The model")


def test_same_seed_gives_the_same_plan_and_the_plan_alone_the_same_model(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--strategy", "conservative", "--num_examples", 2, "--seq-len", 32)
    pruned(parents["llama"], tmp_path / "a", *words)
    pruned(parents["llama"], *words, "--dry-run", "--save-plan", tmp_path / "b.json")
    pruned(parents["llama"], tmp_path / "c", "--plan", tmp_path / "a" / "pruning_plan.json")
    plan = (tmp_path / "a" / "pruning_plan.json").read_text()
    assert read_plan(tmp_path / "b.json") == read_plan(tmp_path / "a" / "pruning_plan.json")
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == weights
    made = json.loads(plan)["made"]
    assert (made["method"], made["seed"], made["calibration"]["text"]) == ("taylor/param_first", 42, "smoke")
    assert str(tmp_path) not in plan


def test_dry_run_prints_each_layer_and_writes_nothing_but_the_plan_asked_for(
    parents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = pruned(parents["llama"], "--ratio", 0.34, "--method", "l2", "--dry-run", "--save-plan", "plan.json")
    assert "12 → 8" in said
    assert "3 → 2" in said
    assert "nothing was written" in said
    assert os.listdir(tmp_path) == ["plan.json"]
    code, _, err = run(parents["llama"], "--ratio", 0.34, "--method", "l2", "--dry-run", "--save-plan", "plan.json")
    assert (code, "never overwritten" in err) == (2, True)


def test_llm_pruner_command_line_writes_under_prune_log_and_clamps_the_ends(
    parents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        f"--base_model {parents['llama']} --save_ckpt_log_name q --pruning_ratio 0.34 --block_wise --pruner_type l1 "
        "--block_mlp_layer_start 1 --block_mlp_layer_end 30 --block_attention_layer_start 4 "
        "--block_attention_layer_end 4 --save_model"
    )
    said = pruned(*line.split())
    assert "30" in said.partition("to know")[2].partition("checked")[0]
    report = gqacheck.check(tmp_path / "prune_log" / "q")
    assert report.geometry is not None
    assert [layer.attention.n_kv_heads for layer in report.geometry.layers] == [3] * 4
    assert [layer.mlp.intermediate_size for layer in report.geometry.layers] == [112, 74, 74, 74]


@pytest.mark.parametrize("family", ["qwen2_tied", "mixtral"])
def test_pickle_as_llm_pruner_writes_it_agrees_with_the_folder(
    parents: dict[str, Path], tmp_path: Path, stranger: Any, family: str
) -> None:
    out = tmp_path / "out"
    said = pruned(
        parents[family], out, "--ratio", 0.34, "--method", "l2", "--like", "llm-pruner", "--drop-layers", "3,"
    )
    assert "layers" in said
    ids, mask = tiny_ids(), torch.ones_like(tiny_ids())
    answers = []
    for path in (out, out / "llm-pruner" / "pytorch_model.bin"):
        stranger("answers", folder=path, ids=ids.tolist(), mask=mask.tolist(), out=str(tmp_path / "answer.pt"))
        answers.append(torch.load(tmp_path / "answer.pt")["logits"])
    assert torch.equal(*answers)
    assert torch.equal(answers[0], logits(out))


@pytest.mark.parametrize(
    ("words", "heads", "widths"),
    [
        (("--layer_wise", "--layer", "2", "--pruning_ratio", "0.5"), [(12, 3)] * 2, [112] * 2),
        (("--drop-layers", "1", "--num_examples", "2", "--seq-len", "32"), [(12, 3)] * 3, [112] * 3),
        (("--ratio", "0.5", "--heads", "queries", "--method", "random"), [(6, 3)] * 4, [56] * 4),
        (("--ratio", "0.34", "--method", "l2", "--iterative_steps", "2"), [(8, 2)] * 4, [74] * 4),
        (("--strategy", "per-layer", "--ratio", "0,.34,.7,0", "--method", "l1"), [(12, 3), (8, 2), (4, 1), (12, 3)],
         [112, 74, 34, 112]),
        (("--ratio", "0.3", "--method", "l2", "--channels-multiple", "16", "--block-attention-layer-end", "0"),
         [(12, 3)] * 4, [80] * 4),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_what_is_cut(
    parents: dict[str, Path], tmp_path: Path, words: tuple[str, ...], heads: list[Any], widths: list[int]
) -> None:
    pruned(parents["llama"], tmp_path / "out", *words)
    report = gqacheck.check(tmp_path / "out")
    assert report.exit_code == 0
    assert report.geometry is not None
    layers = report.geometry.layers
    assert [(layer.attention.n_q_heads, layer.attention.n_kv_heads) for layer in layers] == heads
    assert [layer.mlp.intermediate_size for layer in layers] == widths


def test_share_of_all_parameters_is_met_as_nearly_as_the_layers_allow(parents: dict[str, Path], tmp_path: Path) -> None:
    pruned(parents["llama"], tmp_path / "out", "--parameters", 0.174, "--method", "l2")
    assert read_plan(tmp_path / "out" / "pruning_plan.json").share_removed == pytest.approx(0.174, abs=0.01)


def test_found_shares_per_layer_and_a_refit_are_carried_out(tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text((ROOT / "fixtures" / "heldout.txt").read_text()[:3000])
    said = pruned(
        ROOT / "fixtures" / "llama-32x8", out, "--strategy", "per-layer", "--ratio", 0.3, "--num_examples", 4,
        "--seq-len", 32, "--reconstruct", "--dtype", "float32", "--ppl", text, "--calibration", text,
        "--max_seq_len", 64,
    )  # fmt: skip
    assert "refitted" in said
    assert "which the cut was chosen by" in said
    assert "GQA703" not in said
    assert "windows-64" in said
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert model.dtype == torch.float32


def broken(parent: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(parent)
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight[:80])
    torch.save({"model": model, "tokenizer": None}, folder / "broken.bin")
    return folder / "broken.bin"


def test_broken_parent_is_refused_with_its_first_error(parents: dict[str, Path], tmp_path: Path) -> None:
    code, out, err = run(broken(parents["llama"], tmp_path), tmp_path / "out", "--ratio", 0.2)
    assert (code, out) == (3, "")
    assert "is broken already: GQA1" in err
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["broken.bin"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--ratio", "0.2", "--calibration", "short.txt"), 3, "tokens"),
        (("--ratio", "0.2", "--calibration", "no.txt"), 3, "no.txt"),
        (("--plan", "other.json"), 2, "made for another model"),
        (("--plan", "no.json"), 2, "cannot be read as a plan"),
        (("--strategy", "per-layer", "--ratio", "0.1,0.2"), 2, "2 shares and the model has 4 layers"),
        (("--drop-layers", "4,"), 2, "layer 4"),
        (("--drop-layers", "4"), 2, "at least one"),
        (("--strategy", "conservative", "--block_attention_layer_start", "4"), 2, "lies behind"),
        (("--ratio", "0.2", "--device", "tpu"), 2, "tpu"),
        (("--ratio", "0.2", "--dtype", "int4", "--method", "l2"), 2, "int4"),
        (("--ratio", "0.2", "--ppl", "no.txt@windows-64"), 3, "no.txt"),
        (("--ratio", "0.2", "--calibration", "empty.txt"), 3, "no text to calibrate on"),
        (("--ratio", "0.2", "--iterative_steps", "9999999"), 2, "1,000 is the most"),
        (("--ratio", "0.2", "--method", "l2", "--save-plan", "out"), 2, "are both out"),
        (("--ratio", "0.2", "--method", "l2", "--save-plan", "base/plan.json"), 2, "is not touched"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    parents: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "base").symlink_to(parents["llama"])
    other = dissect(AutoModelForCausalLM.from_pretrained(parents["mixtral"])).shape
    (tmp_path / "other.json").write_text(plan_json(PruningPlan.of(other, {}), {}))
    before = sorted(os.listdir(tmp_path))
    found, out, err = run("base", "out", *words)
    assert (found, out) == (code, ""), err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before
    assert "plan.json" not in os.listdir(parents["llama"])


def test_llm_pruner_command_line_that_fails_leaves_no_log_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("--base_model", "nowhere", "--save_ckpt_log_name", "q", "--block_wise")
    assert (code, err.count("\n"), os.listdir(tmp_path)) == (3, 1, [])


def test_parent_without_a_config_is_refused_with_what_is_wrong(parents: dict[str, Path], tmp_path: Path) -> None:
    weights = AutoModelForCausalLM.from_pretrained(parents["llama"]).state_dict()
    weights["model.layers.1.self_attn.q_proj.weight"] = weights["model.layers.1.self_attn.q_proj.weight"][:64]
    torch.save(weights, tmp_path / "weights.bin")
    code, _, err = run(tmp_path / "weights.bin", tmp_path / "out", "--ratio", 0.2)
    assert code == 3
    assert "is broken already: GQA" in err
    assert len(err.partition("GQA")[2]) > 60


def test_place_that_is_taken_is_refused_before_anything_is_read(parents: dict[str, Path], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for out in (taken, parents["llama"], parents["llama"] / "inside", tmp_path / "no" / "where"):
        code, _, err = run(parents["llama"], out, "--ratio", 0.2)
        assert (code, err.count("\n")) == (2, 1), err
    assert os.listdir(taken) == ["mine.txt"]


def test_result_with_errors_is_not_done_unless_forced(
    parents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(model: Any, plan: PruningPlan) -> Any:
        """Carries the plan out and then exchanges two query heads of different groups."""
        model = prune(model, plan)
        weight = model.model.layers[0].self_attn.q_proj.weight.data
        weight[:8], weight[32:40] = weight[32:40].clone(), weight[:8].clone()
        return model

    monkeypatch.setattr("pruners.run.prune", careless)
    words = (parents["llama"], tmp_path / "out", "--ratio", 0.34, "--method", "l2")
    code, said, err = run(*words)
    assert code == 1
    assert "pairing  FAIL" in said
    assert "GQA60" in err
    assert "was not written" in err
    assert os.listdir(tmp_path) == []
    code, said, err = run(*words, "--force")
    assert code == 1
    assert "because of --force" in err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_live_model_is_exported_as_it_is_and_stays_as_it_was(parents: dict[str, Path], tmp_path: Path) -> None:
    model, tokenizer = gqacheck.load_model(parents["llama"])
    shape = dissect(model).shape
    plan = PruningPlan.of(shape, {1: LayerPlan(whole_groups((0, 2), shape.layers[1])), 2: None})
    prune(model, plan).train()
    with torch.inference_mode():
        expected = model.eval()(input_ids=tiny_ids(), use_cache=False).logits
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()}
    report = export_model(model.train(), tmp_path / "out", tokenizer=tokenizer)
    assert (report.way, report.comparison.difference, report.tokenizer) == ("own-code", 0.0, "written")
    assert torch.equal(logits(tmp_path / "out"), expected)
    assert model.training
    export_model(model, tmp_path / "half", dtype="bfloat16")
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.state_dict().items()} == before


def test_live_model_that_is_broken_is_not_exported(parents: dict[str, Path], tmp_path: Path) -> None:
    model, _ = gqacheck.load_model(parents["llama"])
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight[:80])
    with pytest.raises(CannotExport, match="GQA1"):
        export_model(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []
