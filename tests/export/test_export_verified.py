"""The last guard: whatever goes wrong on the way, a folder that is not the source never gets its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import assert_equal_answers, cut_alike, exported, save_module
from tiny_models import CASES, tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from gqacheck.export import CannotExport, export, form, run, stream, verify
from gqacheck.export.facts import Form

Planned = tuple[Any, ...]


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Form], Form]) -> None:
    """What is written is something else than what fits the checkpoint."""
    real = form.choose_form
    monkeypatch.setattr(run, "choose_form", lambda wanted: change(real(wanted)))


def swapped(one: str, other: str) -> Callable[[Form], Form]:
    """Two tensors under each other's name."""

    def change(made: Form) -> Form:
        by_name = {each.name: each for each in made.tensors}
        names = {one: other, other: one}
        return replace(made, tensors=tuple(replace(by_name[names.get(each.name, each.name)], name=each.name)
                                           for each in made.tensors))  # fmt: skip

    return change


def configured(**changes: Any) -> Callable[[Form], Form]:
    return lambda made: replace(made, config={**made.config, **changes})


def refused(source: Path, tmp_path: Path, said: str) -> None:
    with pytest.raises(CannotExport, match=said):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.fixture(params=["whole", "on demand"])
def way_to_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model is loaded whole, a large one layer by layer: both must notice."""
    if request.param == "on demand":
        monkeypatch.setattr(verify, "SMALL", 0)


@pytest.mark.usefixtures("way_to_run")
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(("one", "other"), [("mlp.gate_proj", "mlp.up_proj"), ("self_attn.k_proj", "self_attn.v_proj")])
def test_exchanged_tensors_are_found_and_the_layer_is_named(
    one: str, other: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_module(tiny_model("llama"), tmp_path / "in", tiny_tokenizer())
    stem = f"model.layers.{layer}"
    changing(monkeypatch, swapped(f"{stem}.{one}.weight", f"{stem}.{other}.weight"))
    refused(source, tmp_path, f"computes something else than the source, from layer {layer} on")


@pytest.mark.usefixtures("way_to_run")
def test_an_exchanged_final_norm_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_module(tiny_model("llama"), tmp_path / "in")
    changing(monkeypatch, swapped("model.norm.weight", "model.layers.3.post_attention_layernorm.weight"))
    refused(source, tmp_path, "from layer 3 on")


@pytest.mark.usefixtures("way_to_run")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "from layer 0 on"),
        ({"rms_norm_eps": 1e-5}, "from layer 0 on|is 1e-05 instead of 1e-06"),
        ({"hidden_act": "gelu"}, "from layer 0 on"),
        ({"num_attention_heads": 6}, "would still have GQA105"),
        ({"num_hidden_layers": 3}, "would still have GQA401"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "GQA108|lacks|does not"),
    ],
)
def test_a_config_that_says_something_else_is_found(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_module(tiny_model("llama"), tmp_path / "in")
    changing(monkeypatch, configured(**changes))
    refused(source, tmp_path, said)


def test_a_setting_that_a_short_text_does_not_show_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 4096 tokens changes nothing in a text of 48."""
    source = save_module(tiny_model("mistral", sliding_window=None), tmp_path / "in")
    changing(monkeypatch, configured(sliding_window=4096))
    refused(source, tmp_path, "the config's sliding_window is 4096 instead of None")


def test_a_tensor_that_is_lost_or_too_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_module(tiny_model("qwen3"), tmp_path / "in")
    with monkeypatch.context() as patch:
        changing(patch, lambda made: replace(made, tensors=made.tensors[:-1]))
        refused(source, tmp_path, "would still have GQA410|lacks")
    with monkeypatch.context() as patch:
        extra = "model.layers.0.self_attn.q_proj.bias"
        changing(patch, lambda made: replace(made, tensors=(*made.tensors, replace(made.tensors[0], name=extra))))
        refused(source, tmp_path, "GQA108|has no place for")


def test_a_file_that_is_spoilt_on_the_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of a row of the embedding that the text does not use."""
    source = save_module(tiny_model("llama"), tmp_path / "in")
    real = stream.write_shard

    def spoilt(folder: str, *arguments: Any, **options: Any) -> None:
        real(folder, *arguments, **options)
        with (Path(folder) / "model.safetensors").open("r+b") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little") + 319 * 96 * 4)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(stream, "write_shard", spoilt)
    refused(source, tmp_path, r"model\.embed_tokens\.weight does not read back as it was written")


def test_code_that_does_not_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    cut_layers(model, (1, 3))
    source = save_module(model, tmp_path / "in")
    changing(
        monkeypatch,
        lambda made: replace(
            made, code={name: text.replace("PrunedLlamaForCausalLM", "Other") for name, text in made.code.items()}
        ),
    )
    refused(source, tmp_path, "does not load")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda model: model.model.rotary_emb.inv_freq.mul_(1.7), "from layer 0 on.*inv_freq in the file differs"),
        (lambda model: setattr(model.model.layers[2].self_attn, "scaling", 0.9), "from layer 2 on.*scaling of"),
        (lambda model: setattr(model.model.layers[1].input_layernorm, "variance_epsilon", 1e-9), "layers.1.input_la"),
    ],
    ids=["inv_freq", "scaling", "eps"],
)
def test_a_module_that_runs_with_what_no_config_can_say_is_refused(
    spoil: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    spoil(model)
    refused(save_module(model, tmp_path / "in"), tmp_path, said)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("falcon", "stablelm"))])
def test_a_large_model_is_run_without_being_loaded(
    name: str, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SMALL", 0)
    model = cut_alike(tiny_model(name))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out")
    assert report.comparison.streamed
    assert report.comparison.difference == 0.0
    assert_equal_answers(stranger, model, tmp_path / "out", family=name)


def test_weights_read_on_demand_give_the_logits_of_weights_in_memory(tmp_path: Path) -> None:
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure
    from gqacheck.runtime import on_demand
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.skeleton import live_layers
    from gqacheck.runtime.trace import apart, smoke_ids, trace

    for name in ("llama_bias", "gemma3", "qwen2_moe", "gpt_oss", "qwen3_next", "qwen2_tied"):
        checkpoint = open_checkpoint(str(save_module(cut_alike(tiny_model(name)), tmp_path / name)))
        geometry = measure(checkpoint)
        ids = smoke_ids(None, 320, tokens=16)
        whole = rebuild(checkpoint, geometry, dtype=torch.float32).model
        expected = trace(whole, list(live_layers(whole, geometry)[1]), ids)
        rebuilt = rebuild(checkpoint, geometry, dtype=torch.float32, weights=False)
        layers = list(live_layers(rebuilt.model, geometry)[1])
        assert all(parameter.is_meta for parameter in rebuilt.model.parameters())
        on_demand.read_on_demand(rebuilt.model, layers, rebuilt.sources)
        found = trace(rebuilt.model, layers, ids)
        assert apart(found.logits, expected.logits) < 1e-6, name
        assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())


def test_weights_read_in_blocks_of_rows_give_the_same_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gqacheck.runtime import on_demand

    monkeypatch.setattr(verify, "SMALL", 0)
    monkeypatch.setattr(on_demand, "BLOCK", 300)
    report = exported(save_module(tiny_model("llama_bias"), tmp_path / "in"), tmp_path / "out")
    assert report.comparison.difference == 0.0
