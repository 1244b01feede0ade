"""``--like llm-pruner``: a pickle of stock classes, which a process without gqacheck loads with torch.load."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, cut_alike, save_module, save_state
from planned_cuts import attention_of, layers_of
from safetensors.torch import load_file
from tiny_models import tiny_ids, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers, cut_mlp, mlp_of

from fixtures.zoo import ZOO, build_case
from gqacheck.cli import main
from gqacheck.errors import UsageError
from gqacheck.export import CannotExport, ExportReport, export
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.runtime.rebuild import rebuild
from gqacheck.runtime.tokenizer import open_tokenizer

OLD = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "old_pickles").glob("*.bin"))
CASES = [case for case in ZOO if case.name in (
    "qwen2-groups-bin", "llama-uneven-by-layer-bin", "llama-mlp-nonuniform-bin", "llama-flap-bin", "llama-tied-bin",
)]  # fmt: skip
TEXT = "The model reads this text, and writes  it back."
NOT_OURS = {"torch", "transformers", "tokenizers", "collections", "__builtin__", "_codecs", "functools"}


def pickled(source: Path, out: Path, **options: Any) -> ExportReport:
    """The export, with what must hold of every one."""
    before = {path: path.stat().st_mtime_ns for path in [source, *source.rglob("*")]}
    report = export(source, out, like="llm-pruner", **options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(out.parent.glob(".*.part"))
    assert (report.way, report.files, report.shards) == ("llm-pruner", (out.name,), 1)
    assert report.bytes_written == out.stat().st_size
    assert report.comparison.ran
    assert {name.partition(".")[0] for name in open_checkpoint(str(out)).globals} <= NOT_OURS
    return report


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("llama", True),
        ("qwen2_tied", False),
        ("phi3", True),
        ("phi3", False),
        ("cohere2", False),
        ("gemma2", False),
        ("falcon", False),
        ("mixtral", True),
        ("gpt_oss", False),
    ],
)
def test_pickle_like_llm_pruner_of_a_cut_family_computes_the_same_without_gqacheck(
    name: str, alike: bool, stranger: Any, tmp_path: Path
) -> None:
    """Families whose forward reads head counts from the config, and experts, which a folder has no own code for."""
    model = tiny_model(name)
    if alike:
        cut_alike(model)
    else:
        cut_layers(model, (1, 3))
    source = save_state(model.state_dict(), model.config, tmp_path / "in")
    width = next(module.head_dim for module in model.modules() if hasattr(module, "head_dim"))
    report = pickled(source, tmp_path / "out.bin", config=tmp_path / "in" / "config", head_dim=width)
    assert report.comparison.difference == 0.0
    told = assert_equal_answers(stranger, model, tmp_path / "out.bin", family=name)
    assert told["class"] == report.architecture == type(model).__name__


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pickle_like_llm_pruner_of_a_zoo_case_goes_round(case: Any, stranger: Any, tmp_path: Path) -> None:
    source = build_case(case, tmp_path / "in")
    report = pickled(source, tmp_path / "out.bin", **case.options)
    assert report.comparison.difference == 0.0
    checkpoint = open_checkpoint(str(source))
    geometry = measure(checkpoint, **case.options)
    model = rebuild(checkpoint, geometry, dtype=torch.float32).model
    ids = tiny_ids()
    told = stranger("logits", folder=tmp_path / "out.bin", ids=ids.tolist(), out=tmp_path / "theirs.pt")
    assert told == {"class": report.architecture, "cached": True}
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "theirs.pt"), model(input_ids=ids, use_cache=False).logits)
    again = measure(open_checkpoint(str(tmp_path / "out.bin")))
    sizes = [(x.attention.n_q_heads, x.attention.n_kv_heads, x.mlp.intermediate_size) for x in geometry.layers]
    assert [(x.attention.n_q_heads, x.attention.n_kv_heads, x.mlp.intermediate_size) for x in again.layers] == sizes
    worse = {f.code for f in report.after.findings} - {f.code for f in report.before.findings}
    assert worse <= {"GQA011"}  # that it is a pickle


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_pickle_like_llm_pruner_of_an_old_pickle_loads_again(path: Path, stranger: Any, tmp_path: Path) -> None:
    """It was written by transformers 4.33 to 5.x, and gives the logits of the version that wrote it."""
    expected = load_file(path.with_suffix(".logits.safetensors"))
    ids = expected["input_ids"]
    report = pickled(path, tmp_path / "out.bin")
    asked = {"folder": tmp_path / "out.bin", "ids": ids.tolist(), "out": tmp_path / "theirs.pt"}
    stranger("logits", attn_implementation="eager", **asked)
    assert torch.equal(torch.load(tmp_path / "theirs.pt"), expected["logits_eager"])
    if open_checkpoint(str(path)).tokenizer is None:
        assert report.tokenizer == "none is stored with the checkpoint"
        return
    source = open_tokenizer(open_checkpoint(str(path)))
    told = stranger("encode", folder=tmp_path / "out.bin", text=TEXT)
    assert told["ids"] == list(source.encode(TEXT))
    assert (told["bos"], told["eos"]) == (source.bos_token_id, source.eos_token_id)


def test_pickle_like_llm_pruner_has_every_attribute_in_step(tmp_path: Path) -> None:
    """What pruners leave behind, and forward passes and peft read: they are as the tensors of each layer are."""
    model = tiny_model("llama")
    cut_layers(model, (1, 3))
    for layer in model.model.layers:
        layer.self_attn.num_key_value_groups = layer.self_attn.config.num_attention_heads = 4
        layer.self_attn.q_proj.out_features = layer.mlp.down_proj.in_features = 5
    pickled(save_module(model, tmp_path / "in", tiny_tokenizer()), tmp_path / "out.bin", force=True)
    made = torch.load(tmp_path / "out.bin", weights_only=False)  # of this very interpreter's classes
    assert made.keys() == {"model", "tokenizer"}
    for index, layer in enumerate(layers_of(made["model"])):
        attention = attention_of(layer)
        heads = attention.o_proj.in_features // attention.head_dim
        assert attention.layer_idx == index
        assert attention.num_key_value_groups == heads // (attention.k_proj.out_features // attention.head_dim)
        for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
            assert (linear.out_features, linear.in_features) == tuple(linear.weight.shape)
    config = made["model"].config
    assert config.gqacheck_layers["num_attention_heads"] == [12, 8, 12, 4]
    assert (config.num_attention_heads, config.num_key_value_heads, config.name_or_path) == (12, 3, "")
    assert made["tokenizer"].encode(TEXT) == tiny_tokenizer().encode(TEXT)
    assert not made["model"].training


def test_pickle_like_llm_pruner_takes_a_lora(stranger: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = tiny_model("qwen3")
    cut_layers(model, (1, 3))
    pickled(save_module(model, tmp_path / "in"), tmp_path / "out.bin")
    ids = tiny_ids().tolist()
    told = stranger("lora", folder=tmp_path / "out.bin", ids=ids, targets="all-linear", out=tmp_path / "adapter")
    assert told["sizes"]["model.layers.3.self_attn.k_proj"] == [96, 16]
    assert told["idle"] == []
    assert told["reloaded"] == 0.0
    assert told["merged"] < 1e-3


def test_pickle_like_llm_pruner_of_a_folder_brings_its_tokenizer_and_no_paths(tmp_path: Path) -> None:
    model, folder = cut_alike(tiny_model("llama")), tmp_path / "named-so-that-it-shows"
    model.config.num_attention_heads, model.config.num_key_value_heads = 8, 2
    model.config.intermediate_size = 56
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    report = pickled(folder, tmp_path / "out.bin")
    assert report.tokenizer == "pickled beside the model, recovered from the folder"
    assert b"named-so-that-it-shows" not in (tmp_path / "out.bin").read_bytes()
    assert open_tokenizer(open_checkpoint(str(tmp_path / "out.bin"))).encode(TEXT) == tiny_tokenizer().encode(TEXT)


def test_pickle_like_llm_pruner_casts_weights_and_not_buffers(tmp_path: Path) -> None:
    report = pickled(save_module(tiny_model("llama"), tmp_path / "in"), tmp_path / "out.bin", dtype="bfloat16")
    assert (report.dtype, report.comparison.difference) == ("bfloat16", 0.0)
    model = torch.load(tmp_path / "out.bin", weights_only=False)["model"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert model.config.dtype == torch.bfloat16


def test_pickle_like_llm_pruner_of_a_number_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = 1e6
    source = save_module(model, tmp_path / "in")
    with pytest.raises(CannotExport, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds 1e\+06, more than float16"):
        export(source, tmp_path / "out.bin", like="llm-pruner", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("block", "said"), [("attention", "layer 2 without attention"), ("mlp", "layer 1 without MLP")]
)
def test_pickle_like_llm_pruner_of_a_dropped_block_points_to_a_folder(block: str, said: str, tmp_path: Path) -> None:
    from cut_folders import random_cut, write_folder

    gone = {"no_attention": {2}} if block == "attention" else {"no_mlp": {1}}
    source = write_folder(random_cut("llama", 4, **gone), tmp_path / "in")
    with pytest.raises(CannotExport, match=rf"^{said}, and stock classes .*: export a folder instead"):
        export(source, tmp_path / "out.bin", like="llm-pruner", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"like": "wanda"}, "--like knows only llm-pruner, not wanda"),
        ({"like": "llm-pruner", "pad": True}, "--pad with --like llm-pruner makes no sense"),
        ({"like": "llm-pruner", "max_shard_size": "5GB"}, "--max-shard-size with --like llm-pruner makes no sense"),
    ],
)
def test_pickle_like_llm_pruner_beside_options_of_a_folder_is_a_usage_error(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        export(OLD[0], tmp_path / "out.bin", **options)
    assert not list(tmp_path.iterdir())


def test_pickle_like_llm_pruner_never_overwrites_anything(tmp_path: Path) -> None:
    (tmp_path / "there.bin").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    for name in ("there.bin", "folder"):
        with pytest.raises(UsageError, match="exists already and is never overwritten"):
            export(OLD[0], tmp_path / name, like="llm-pruner")
    assert (tmp_path / "there.bin").read_bytes() == b"mine"


def _weight(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 3.0


def _eps(model: Any) -> None:
    model.model.layers[1].input_layernorm.variance_epsilon = 0.5


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(_weight, "model.layers.1.mlp.up_proj.weight"), (_eps, "variance_epsilon of model.layers.1.input_layernorm")],
)
def test_pickle_like_llm_pruner_with_other_numbers_in_the_file_is_not_kept(
    spoil: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back is held against the model in memory."""
    source, save = save_module(tiny_model("llama"), tmp_path / "in"), torch.save

    def spoilt(made: Any, path: str) -> None:
        other = copy.deepcopy(made)
        spoil(other["model"])
        save(other, path)

    monkeypatch.setattr(torch, "save", spoilt)
    with pytest.raises(CannotExport, match=f"{re.escape(said)} does not read back as it was written"):
        export(source, tmp_path / "out.bin", like="llm-pruner")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pickle_like_llm_pruner_too_large_to_be_loaded_whole_is_compared_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gqacheck.export.verify.SMALL", 0)
    model = tiny_model("llama")
    cut_layers(model, (1, 3))
    report = pickled(save_module(model.half(), tmp_path / "in"), tmp_path / "out.bin")
    assert (report.comparison.streamed, report.comparison.difference) == (True, 0.0)


def test_pickle_like_llm_pruner_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer of torch has its own words for it."""

    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    source = save_module(tiny_model("llama"), tmp_path / "in")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CannotExport, match=r"no space left in .*; nothing was written"):
        export(source, tmp_path / "out.bin", like="llm-pruner")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pickle_like_llm_pruner_with_a_class_of_ours_inside_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi-3 of differing layers has views of its config in memory: without the exchange they would be pickled."""
    import gqacheck.export.llm_pruner as module

    model = tiny_model("phi3")
    cut_layers(model, (1, 3))
    source = save_module(model, tmp_path / "in")
    monkeypatch.setattr(module, "_own_configs", lambda model: None)
    with pytest.raises(CannotExport, match=r"would need gqacheck\.runtime\.skeleton\.LayerConfig where it is loaded"):
        export(source, tmp_path / "out.bin", like="llm-pruner")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pickle_like_llm_pruner_whose_modules_read_another_config_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is built again from the pickle gets its configs anew: only running the very model shows it."""
    import gqacheck.export.llm_pruner as module

    def same_for_all(model: Any) -> None:
        for layer in layers_of(model):
            attention_of(layer).config = copy.copy(model.config)

    model = tiny_model("phi3")
    cut_layers(model, (1, 3))
    source = save_module(model, tmp_path / "in")
    monkeypatch.setattr(module, "_own_configs", same_for_all)
    with pytest.raises(CannotExport, match="what was written does not run"):
        export(source, tmp_path / "out.bin", like="llm-pruner")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_export_command_like_llm_pruner_says_how_to_load_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama")
    cut_mlp(mlp_of(model.model.layers[0]), 0.5)
    source = save_module(model, tmp_path / "in", tiny_tokenizer())
    assert main(["export", str(source), str(tmp_path / "out.bin"), "--like", "llm-pruner"]) == 0
    said = capsys.readouterr().out
    assert f'torch.load("{tmp_path}/out.bin", weights_only=False)["model"]' in said
    assert "rebuilt from the pickle as data" in said
    assert main(["export", str(source), str(tmp_path / "b.bin"), "--like", "llm-pruner", "--max-shard-size=1GB"]) == 2
    assert "--max-shard-size with --like" in capsys.readouterr().err
