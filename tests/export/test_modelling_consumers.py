"""What people do with an exported folder: train it, tune it, spread it over devices, switch attention, copy it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_folders import Cut, random_cut, write_folder
from planned_cuts import attention_of, layers_of
from tiny_models import logits_of, tiny_ids, tiny_tokenizer

PROMISED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
IDS = tiny_ids()


@pytest.fixture(scope="module", params=PROMISED)
def cut(request: pytest.FixtureRequest) -> Cut:
    """Every family once, with a dropped attention, a dropped MLP and a layer that lost both."""
    return random_cut(request.param, 4, no_attention={0, 2}, no_mlp={1, 2})


@pytest.fixture
def folder(cut: Cut, tmp_path: Path) -> Path:
    return write_folder(cut, tmp_path / tmp_path.name)  # transformers 4 keys loaded code by the folder's name


def assert_same(stranger: Any, cut: Cut, folder: Path, scratch: Path) -> None:
    """Demand that the stranger's logits are those of the cut model, bit for bit."""
    mask = torch.ones_like(IDS).tolist()
    stranger("answers", folder=folder, ids=IDS.tolist(), mask=mask, out=scratch / "theirs.pt")
    assert torch.equal(torch.load(scratch / "theirs.pt")["logits"], logits_of(cut.model, IDS))


def test_modelling_set_attn_implementation_reaches_every_layer(folder: Path, cut: Cut, stranger: Any) -> None:
    mask = torch.ones_like(IDS)
    mask[0, :7] = 0
    told = stranger("set_attention", folder=folder, ids=IDS.tolist(), mask=mask.tolist())
    assert told["layers"] == [1, 3]
    assert told["apart"].pop("eager") == told["apart"].pop("counting") == 0.0
    if cut.family == "gemma2":
        return  # sdpa has no soft cap, which transformers 5 refuses and 4 does not
    assert told["apart"]["sdpa"] < 1e-4


def test_modelling_gradients_equal_those_of_the_cut_model(
    folder: Path, cut: Cut, stranger: Any, tmp_path: Path
) -> None:
    plain = stranger("gradients", folder=folder, ids=IDS.tolist(), out=tmp_path / "plain.pt", checkpointing=False)
    again = stranger("gradients", folder=folder, ids=IDS.tolist(), out=tmp_path / "again.pt", checkpointing=True)
    assert plain["loss"] == again["loss"]
    one, two = torch.load(tmp_path / "plain.pt"), torch.load(tmp_path / "again.pt")
    assert all(torch.equal(one[name], two[name]) for name in one)
    model = copy.deepcopy(cut.model)
    model.set_attn_implementation("eager")
    for layer in layers_of(model):
        attention_of(layer).config._attn_implementation = "eager"  # a cut Phi-3 has a config per layer
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert loss.item() == plain["loss"]
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert one.keys() == {name for name in ours if not name.startswith(cut.dropped)}
    for name, gradient in one.items():
        assert torch.allclose(gradient, ours[name], rtol=1e-5, atol=1e-7), name


def test_modelling_trainer_steps_and_its_checkpoint_loads(folder: Path, stranger: Any, tmp_path: Path) -> None:
    told = stranger("train", folder=folder, ids=IDS.tolist(), out=tmp_path / "out")
    assert told["changed"] == told["all"]
    assert told["apart"] == 0.0


def test_modelling_lora_attaches_at_each_layers_own_size(folder: Path, cut: Cut, stranger: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    told = stranger("lora", folder=folder, ids=IDS.tolist(), targets="all-linear", out=tmp_path / "adapter")
    linears = {
        name: [module.in_features, module.out_features]
        for name, module in cut.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and not name.startswith(cut.dropped)
    }
    assert told["sizes"] == linears
    assert told["idle"] == []
    assert told["reloaded"] == 0.0
    assert told["merged"] < 1e-4


@pytest.mark.parametrize(
    "usual",
    [
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"low_cpu_mem_usage": True},
        {"dtype": "auto"},
        {"dtype": "bfloat16"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_modelling_loads_in_every_usual_way(
    usual: dict[str, Any], cut: Cut, folder: Path, stranger: Any, tmp_path: Path
) -> None:
    options = {"attn_implementation": "eager", **usual} if cut.family == "gemma2" else usual
    mask = torch.ones_like(IDS).tolist()
    told = stranger("answers", folder=folder, ids=IDS.tolist(), mask=mask, out=tmp_path / "theirs.pt", **options)
    logits = torch.load(tmp_path / "theirs.pt")["logits"]
    expected = logits_of(cut.model, IDS)
    assert told["dtype"] == ("torch.bfloat16" if options.get("dtype") == "bfloat16" else "torch.float32")
    assert logits.dtype == getattr(torch, told["dtype"].removeprefix("torch."))
    apart = (logits.float() - expected).abs().max() / expected.std()
    allowed = {"{'dtype': 'bfloat16'}": 0.3, "{'attn_implementation': 'eager'}": 1e-4}
    assert apart <= allowed.get(str(usual), 0.0)


def test_modelling_from_config_initialises_every_part(folder: Path, cut: Cut, stranger: Any) -> None:
    made = stranger("from_config", folder=folder)
    shapes = {
        name: list(parameter.shape)
        for name, parameter in cut.model.named_parameters()
        if not name.startswith(cut.dropped)
    }
    assert {name: one["shape"] for name, one in made.items()} == shapes
    for name, one in made.items():
        if len(one["shape"]) > 1:
            assert 0.01 < one["std"] < 0.04, name  # initializer_range is 0.02
        elif "norm" in name:
            assert one["mean"] in (0.0, 1.0), name  # Gemma's norms add one
            assert one["std"] == 0.0


def test_modelling_copies_and_pickles_are_models_of_their_own(folder: Path, stranger: Any) -> None:
    for told in stranger("copies", folder=folder, ids=IDS.tolist()):
        assert told == {"apart": 0.0, "layers": [1, 3], "original": []}


def test_modelling_outputs_list_every_hidden_state_and_the_attentions_there_are(
    folder: Path, cut: Cut, stranger: Any
) -> None:
    told = stranger("outputs", folder=folder, ids=IDS.tolist())
    assert told["hidden"] == 5
    assert told["heads"] == [count for count in cut.sizes["num_attention_heads"] if count]


def test_modelling_backbone_alone_loads_and_saves(folder: Path, stranger: Any, tmp_path: Path) -> None:
    told = stranger("backbone", folder=folder, ids=IDS.tolist(), out=tmp_path / "backbone")
    assert told["apart"] == [0.0, 0.0]
    assert told["class"].endswith("Model")
    assert told["other engines"] is False  # vLLM asks, and would lay out one number of heads for all layers


def test_modelling_prompt_read_in_pieces_writes_the_same(folder: Path, stranger: Any) -> None:
    # the library fills a static cache beforehand here, with one number of heads for all layers
    assert stranger("in_chunks", folder=folder, ids=tiny_ids(batch=1).tolist()) == {"static": True, "dynamic": True}


def test_modelling_tokenizer_beside_it_and_pipeline_work(stranger: Any, tmp_path: Path) -> None:
    folder = write_folder(random_cut("llama", 4), tmp_path / "model")
    tiny_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert stranger("write_text", folder=folder, prompt="head").startswith("head")


def test_modelling_config_keeps_its_own_type_and_the_lists(folder: Path, cut: Cut, stranger: Any) -> None:
    told = stranger("config", folder=folder)
    assert told["values"]["gqacheck_layers"] == cut.sizes
    assert told["values"]["model_type"] == f"gqacheck_{cut.family}"


@pytest.mark.parametrize("case", ["llama", "mistral", "phi3"])
def test_modelling_biases_that_the_stock_class_lacks_are_kept(case: str, stranger: Any, tmp_path: Path) -> None:
    # FLAP makes up for what it removes with biases on o_proj and down_proj
    cut = random_cut(case, 4)
    names: list[list[str]] = [[], ["self_attn.o_proj", "mlp.down_proj"], ["mlp.down_proj"], ["self_attn.o_proj"]]
    generator = torch.Generator().manual_seed(0)
    for layer, biased in zip(layers_of(cut.model), names, strict=True):
        for name in biased:
            values = torch.randn(96, generator=generator)
            layer.get_submodule(name).bias = torch.nn.Parameter(values)
    lists = {**cut.sizes, "added_biases": names}
    folder = write_folder(cut, tmp_path / "model", gqacheck_layers=lists)
    assert_same(stranger, cut, folder, tmp_path)
    stranger("round_trip", folder=folder, out=tmp_path / "again")
    assert_same(stranger, cut, tmp_path / "again", tmp_path)


@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "intermediate_size"])
def test_modelling_list_of_another_length_is_one_sentence(key: str, stranger: Any, tmp_path: Path) -> None:
    cut = random_cut("llama", 4)
    lists = {**cut.sizes, key: cut.sizes[key][:3]}
    folder = write_folder(cut, tmp_path / "model", gqacheck_layers=lists)
    reply = stranger.ask("round_trip", folder=folder, out=tmp_path / "out")
    assert reply["error"] == f"ValueError: gqacheck_layers.{key} in config.json has 3 entries for 4 layers"


def test_modelling_lists_missing_altogether_is_one_sentence(stranger: Any, tmp_path: Path) -> None:
    folder = write_folder(random_cut("llama", 4), tmp_path / "model", gqacheck_layers=None)
    reply = stranger.ask("round_trip", folder=folder, out=tmp_path / "out")
    assert "gqacheck_layers.num_attention_heads in config.json has 0 entries for 4 layers" in reply["error"]


@pytest.mark.parametrize(("heads", "kv"), [(7, 3), (0, 3), (12, 0)])
def test_modelling_heads_that_cannot_share_are_one_sentence(heads: int, kv: int, stranger: Any, tmp_path: Path) -> None:
    cut = random_cut("llama", 4)
    lists = {name: list(sizes) for name, sizes in cut.sizes.items()}
    lists["num_attention_heads"][1], lists["num_key_value_heads"][1] = heads, kv
    folder = write_folder(cut, tmp_path / "model", gqacheck_layers=lists)
    reply = stranger.ask("round_trip", folder=folder, out=tmp_path / "out")
    assert reply["error"] == f"ValueError: layer 1: {heads} query heads cannot share {kv} key/value heads evenly"


def test_modelling_process_cannot_import_gqacheck(stranger: Any) -> None:
    assert "No module named 'gqacheck'" in stranger.ask("import_gqacheck")["error"]
