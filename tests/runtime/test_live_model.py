"""``describe_model``: a live module as facts, the same facts that its pickle gives."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from tiny_models import CASES, tiny_config, tiny_model
from tiny_surgery import cut_layers
from torch import nn

import gqacheck
from gqacheck.checkpoint import Container
from gqacheck.errors import UsageError
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.runtime.live import describe_model


@pytest.mark.parametrize("name", CASES)
def test_live_model_gives_the_geometry_that_its_pickle_gives(name, tmp_path):
    model = tiny_model(name)
    cut_layers(model)
    torch.save(model, tmp_path / "m.bin")
    stored, live = open_checkpoint(str(tmp_path / "m.bin")), describe_model(model)
    assert set(live.tensors) == set(stored.tensors)
    for key, tensor in stored.tensors.items():
        mine = live.tensors[key]
        assert (mine.shape, mine.dtype, mine.strides, mine.kind) == (
            tensor.shape,
            tensor.dtype,
            tensor.strides,
            tensor.kind,
        )
    assert {path: module.class_name for path, module in live.modules.items()} == {
        path: module.class_name for path, module in stored.modules.items()
    }
    for path, module in stored.modules.items():
        for key, value in module.attributes.items():
            assert live.modules[path].attributes.get(key) == value, (path, key)
    mine, theirs = measure(live), measure(stored)
    assert [layer.signature for layer in mine.layers] == [layer.signature for layer in theirs.layers]
    assert mine.family.name == theirs.family.name
    assert live.parameters == stored.parameters == sum(p.numel() for p in model.parameters())
    assert live.container is Container.MODULE
    assert live.format == "live-module"


@pytest.mark.parametrize("name", ["llama", "qwen2_tied", "gemma3", "mixtral"])
def test_meta_model_is_described_without_weights(name):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name))
    found = describe_model(model)
    assert measure(found).n_layers == 4
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_tied_weights_share_a_storage_and_untied_ones_do_not():
    tied, untied = describe_model(tiny_model("qwen2_tied")), describe_model(tiny_model("qwen2"))
    names = "model.embed_tokens.weight", "lm_head.weight"
    assert len({tied.tensors[name].storage.key for name in names}) == 1
    assert len({untied.tensors[name].storage.key for name in names}) == 2


def wrapped(model, how):
    if how == "compile":
        return torch.compile(model)
    if how == "compiled layers":
        for index, layer in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(layer)
        return model
    if how == "data parallel":
        return nn.DataParallel(model)
    if how == "data parallel of compile":
        return nn.DataParallel(torch.compile(model))
    from peft import LoraConfig, get_peft_model

    if how == "lora":
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"]))
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))


@pytest.mark.parametrize(
    "how", ["compile", "compiled layers", "data parallel", "data parallel of compile", "lora", "lora with saved head"]
)
def test_wrappers_and_adapters_are_seen_through(how):
    model = tiny_model("llama")
    cut_layers(model)
    plain = describe_model(copy.deepcopy(model))
    found = describe_model(wrapped(model, how))
    assert {k: (t.shape, t.dtype) for k, t in found.tensors.items()} == {
        k: (t.shape, t.dtype) for k, t in plain.tensors.items()
    }
    assert set(found.modules) == set(plain.modules)
    assert found.config == plain.config
    assert measure(found).layers[1].attention.n_q_heads == 8
    assert bool(found.ignored) == ("lora" in how)


def test_distributed_wrapper_is_seen_through(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        found = describe_model(nn.parallel.DistributedDataParallel(tiny_model("llama")))
    finally:
        dist.destroy_process_group()
    assert "model.layers.3.mlp.up_proj.weight" in found.tensors


def test_attributes_keep_numbers_that_pruners_leave_and_drop_what_is_no_data():
    model = tiny_model("llama")
    attention = model.model.layers[0].self_attn
    attention.num_heads = numpy.int64(12)
    attention.ratio = numpy.float64(4.0)
    attention.mask = torch.zeros(3)
    attention.kept = [numpy.int32(1), 2]
    attention.callback = print
    attributes = describe_model(model).modules["model.layers.0.self_attn"].attributes
    assert (attributes["num_heads"], type(attributes["num_heads"])) == (12, int)
    assert (attributes["ratio"], type(attributes["ratio"])) == (4.0, float)
    assert attributes["kept"] == (1, 2)
    assert "mask" not in attributes
    assert "callback" not in attributes
    assert attributes["head_dim"] == 8


def test_sound_model_passes_and_stale_ones_are_found():
    model = tiny_model("llama")
    gqacheck.assert_sound(model)
    cut_layers(model, (1, 3))
    assert [f.code for f in gqacheck.check_model(model).findings if f.severity == "error"] == []
    model.model.layers[1].self_attn.num_key_value_groups = 7
    model.model.layers[2].mlp.gate_proj.out_features = 111
    codes = {finding.code for finding in gqacheck.check_model(model).findings}
    assert {"GQA201", "GQA204"} <= codes
    with pytest.raises(AssertionError, match="GQA204"):
        gqacheck.assert_sound(model)


def test_config_of_ones_own_and_a_config_that_cannot_be_read_do_not_stop_the_description():
    model = tiny_model("llama")

    class Sulking:
        model_type = "llama"

        def __init__(self):
            self.hidden_size = 96

        def to_dict(self):
            raise RuntimeError("no")

    model.config = Sulking()
    assert describe_model(model).config.values == {"hidden_size": 96, "model_type": "llama"}
    model.config = {"model_type": "llama"}
    assert describe_model(model).config.values == {"model_type": "llama"}


def test_what_is_no_module_is_a_usage_error():
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module, got dict"):
        describe_model({"model": 1})


def test_nothing_is_moved_computed_or_changed():
    model = tiny_model("llama")
    before = {name: (p.data_ptr(), p._version) for name, p in model.named_parameters()}
    state = {name: dict(vars(module)) for name, module in model.named_modules()}
    describe_model(model)
    assert {name: (p.data_ptr(), p._version) for name, p in model.named_parameters()} == before
    assert all(vars(module).keys() == state[name].keys() for name, module in model.named_modules())
