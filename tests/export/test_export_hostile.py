"""What a checkpoint says is data: nobody's code is run, nothing is passed off as checked, and no bug shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, cut_alike, exported, save_module, save_state
from planned_cuts import attention_of, layers_of
from safetensors.torch import save_file
from tiny_models import VOCAB, tiny_model
from tiny_surgery import cut_attention, cut_mlp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gqacheck import load_model
from gqacheck.errors import ReadError
from gqacheck.export import CannotExport, export, run
from gqacheck.export.run import check_path
from gqacheck.export.text import export_blocks
from gqacheck.report.document import plain


def cut_behind(model: Any) -> Any:
    """The layers from the third on cut, so that a folder needs a modelling file."""
    for layer in layers_of(model)[2:]:
        cut_attention(attention_of(layer), (0, 1, 2, 3), (0, 2))
        cut_mlp(layer.mlp, 0.5)
    return model


def folder_of(model: Any, folder: Path, **settings: Any) -> Path:
    """A folder as pruners write it: the tensors, and the config with ``settings`` in it."""
    folder.mkdir()
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | settings, default=str))
    return folder


def save_tokenizer(folder: Path, **settings: Any) -> Path:
    """A tokenizer.json of words, and a tokenizer_config.json with ``settings`` in it."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCAB)}
    backend = Tokenizer(models.WordLevel(words, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder with a tokenizer class that leaves a trace when it is imported."""
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\n"
    )
    return folder


@pytest.mark.parametrize("spoiled", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_code_that_a_tokenizer_names_is_neither_run_nor_exported(
    given: bool, spoiled: bool, evil: Path, tmp_path: Path
) -> None:
    """Neither with --tokenizer, nor where a JSON reader stricter than transformers' refuses the file."""
    reference = f"{evil}--evil.Evil"
    settings: dict[str, Any] = {"auto_map": {"AutoTokenizer": [reference, reference]}, "tokenizer_class": "Evil"}
    if spoiled:
        settings["deep"] = json.loads("[" * 130 + "]" * 130)
    source = folder_of(cut_behind(tiny_model("llama")), tmp_path / "in")
    there = tmp_path / "beside" if given else source
    there.mkdir(exist_ok=True)
    save_tokenizer(there, **settings)
    report = exported(source, tmp_path / "out", **({"tokenizer": there} if given else {}))
    assert report.way == "own-code"
    assert not (tmp_path / "trace").exists()
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "auto_map" not in written
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["eos_token"] == "</s>"
    assert report.tokenizer.endswith("its own code left out)")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", {"type": "Evil\n"}, "its files are copied as they are, and nothing here reads them"),
        (
            "post_processor",  # encoding panics in Rust, which is no Exception
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nobody", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
            "AutoTokenizer cannot read it",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_told_and_does_not_stop_the_export(
    key: str, value: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = save_tokenizer(folder_of(tiny_model("llama"), tmp_path / "in"))
    path = source / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    report = exported(source, tmp_path / "out")
    assert report.comparison.equal
    assert any(said in note for note in report.notes)


def test_settings_that_are_no_json_object_are_left_out(tmp_path: Path) -> None:
    source = save_tokenizer(folder_of(tiny_model("llama"), tmp_path / "in"))
    (source / "tokenizer_config.json").write_text('["auto_map"')
    report = exported(source, tmp_path / "out")
    assert "tokenizer_config.json" not in report.files
    assert "tokenizer_config.json left out" in report.tokenizer


def test_load_model_keeps_the_special_tokens_of_a_tokenizer_whose_code_it_does_not_run(tmp_path: Path) -> None:
    source = folder_of(tiny_model("llama"), tmp_path / "in")
    save_tokenizer(
        source, auto_map={"AutoTokenizer": ["no.No", None]}, tokenizer_class="No", pad_token={"content": "w7"}
    )
    _, tokenizer = load_model(source)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "w7")


def test_code_of_a_family_of_its_own_is_copied_byte_for_byte(tmp_path: Path) -> None:
    settings = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    source = folder_of(tiny_model("llama"), tmp_path / "in", **settings)
    code = b"# \xff no UTF-8\r\nclass Mine: pass\n"
    (source / "modeling_mine.py").write_bytes(code)
    assert exported(source, tmp_path / "out").way == "as-stored"
    assert (tmp_path / "out" / "modeling_mine.py").read_bytes() == code


def test_half_a_surrogate_pair_in_a_pickled_config_is_no_bug(stranger: Any, tmp_path: Path) -> None:
    model = cut_alike(tiny_model("llama"))
    model.config.remark = "\ud800"
    exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert_equal_answers(stranger, model, tmp_path / "out")


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_tensor_name_that_safetensors_cannot_hold_is_told(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = save_state({**model.state_dict(), name: torch.ones(2)}, model.config, tmp_path / "in")
    config = tmp_path / "in" / "config" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mine"}))
    with pytest.raises(CannotExport, match=r"a stored tensor is called .*, which safetensors cannot hold: rename it"):
        export(source, tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def test_a_file_of_names_without_weights_is_told_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    source = save_state(model.to("meta").state_dict(), model.config, tmp_path / "in")
    with pytest.raises(ReadError, match="has no bytes in the file"):
        export(source, tmp_path / "in" / "out", config=tmp_path / "in" / "config", head_dim=8)


def test_a_setting_that_looks_like_a_path_is_not_replaced_by_a_default(tmp_path: Path) -> None:
    source = folder_of(tiny_model("llama"), tmp_path / "in", hidden_act="/si/lu")
    with pytest.raises(CannotExport, match="unknown name '/si/lu'"):
        export(source, tmp_path / "out")


@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"do_sample": True, "temperature": float("nan")}])
def test_generation_settings_that_transformers_refuses_are_left_out_and_told(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    source = folder_of(tiny_model("llama"), tmp_path / "in")
    (source / "generation_config.json").write_text(json.dumps(settings))
    report = exported(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written.keys() == {"bos_token_id", "eos_token_id", "transformers_version"}
    assert any(note.startswith("generation_config: left out but for the special tokens") for note in report.notes)


@pytest.mark.parametrize("like", [None, "llm-pruner"])
def test_logits_that_are_nan_are_not_called_equal(like: str | None, tmp_path: Path) -> None:
    model = cut_alike(tiny_model("llama"))
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    report = export(save_module(model, tmp_path / "in"), tmp_path / "out", like=like)
    assert not report.comparison.ran
    assert report.comparison.reason.endswith("logits of the source itself are NaN, from layer 2 on")


def test_what_force_lets_pass_is_told_and_not_called_right(tmp_path: Path) -> None:
    model = tiny_model("llama")
    for layer in layers_of(model)[2:]:
        cut_attention(attention_of(layer), (0, 1), (0, 2))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", force=True)
    assert not any("GQA105" in sentence for sentence in report.cured)
    assert any(note.startswith("GQA105") and "because of --force" in note for note in report.notes)


def test_a_cast_is_not_called_equal_bytes(tmp_path: Path) -> None:
    report = exported(save_module(cut_alike(tiny_model("llama")), tmp_path / "in"), tmp_path / "out", dtype="float16")
    assert "equal to the source's, each of them cast to float16" in plain(export_blocks(report))


def test_a_source_that_changes_while_its_headers_are_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_module(cut_alike(tiny_model("llama")), tmp_path / "in")

    def late(path: str, options: Any) -> Any:
        report = check_path(path, options)
        with source.open("ab") as stream:
            stream.write(b"more")
        return report

    monkeypatch.setattr(run, "check_path", late)
    with pytest.raises(CannotExport, match=r"pytorch_model\.bin changed while it was read"):
        export(source, tmp_path / "out")


def test_a_mixture_of_experts_that_no_class_holds_is_told_of_padding(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    for layer in layers_of(model)[2:]:
        cut_attention(attention_of(layer), (0, 1, 2, 3), (0, 2))
    with pytest.raises(CannotExport, match="--pad may make it fit"):
        export(save_module(model, tmp_path / "in"), tmp_path / "out")
