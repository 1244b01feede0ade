"""What GQA3xx and GQA4xx say the user's stack will say is what transformers and torch do say."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.measure import measure
from gqacheck.rules.mlp import MLP_RULES
from gqacheck.rules.model import MODEL_RULES
from gqacheck.rules.rule import Finding
from gqacheck.rules.run import run_rules
from gqacheck.runtime.live import describe_model
from gqacheck.testing.sketch import Sketch, sketch_llama

RULES = (*MLP_RULES, *MODEL_RULES)
SHAPES = r"torch\.Size\(\[[\d, ]*\]\)"
MLP, ATTENTION = "model.layers.1.mlp", "model.layers.1.self_attn"


def judged(checkpoint) -> tuple[Finding, ...]:
    return run_rules(Subject(checkpoint, measure(checkpoint)), RULES)[0]


def shape(name: str, *sizes: int) -> Callable[[Sketch], object]:
    return lambda sketch: sketch.set_tensor(name, sizes)


def config(**values: object) -> Callable[[Sketch], object]:
    return lambda sketch: sketch.config.update(values)


def cut_heads(sketch: Sketch) -> None:
    for layer in range(3):
        sketch.cut_heads(layer, n_q_heads=8, n_kv_heads=2)


def cut_one_mlp(sketch: Sketch) -> None:
    sketch.cut_mlp(1, 80)


def without_head_dim(sketch: Sketch) -> None:
    cut_heads(sketch)
    sketch.config |= {"num_attention_heads": 8, "num_key_value_heads": 2}
    del sketch.config["head_dim"]


FAULTS: dict[str, tuple[str, Callable[[Sketch], object]]] = {
    "gate": ("GQA301", shape(f"{MLP}.gate_proj.weight", 80, 96)),
    "up": ("GQA301", shape(f"{MLP}.up_proj.weight", 80, 96)),
    "down": ("GQA302", shape(f"{MLP}.down_proj.weight", 96, 80)),
    "gate columns": ("GQA303", shape(f"{MLP}.gate_proj.weight", 128, 80)),
    "down rows": ("GQA303", shape(f"{MLP}.down_proj.weight", 80, 128)),
    "layers above": ("GQA401", config(num_hidden_layers=4)),
    "layers below": ("GQA401", config(num_hidden_layers=2)),
    "gap": ("GQA402", lambda sketch: sketch.drop("model.layers.1")),
    "heads": ("GQA403", cut_heads),
    "width": ("GQA404", config(intermediate_size=64)),
    "one layer": ("GQA405", cut_one_mlp),
    "refused": ("GQA406", config(num_attention_heads=9)),
    "implied head_dim": ("GQA407", without_head_dim),
    "lm_head": ("GQA408", shape("lm_head.weight", 60, 96)),
    "vocabulary": ("GQA408", config(vocab_size=80)),
    "norm": ("GQA409", shape("model.layers.1.input_layernorm.weight", 48)),
    "missing": ("GQA410", lambda sketch: sketch.drop(f"{MLP}.up_proj")),
    "unknown": ("GQA410", lambda sketch: sketch.set_tensor(f"{MLP}.stranger.weight", (4, 4))),
    "layer types": ("GQA411", config(layer_types=["full_attention"] * 4)),
    "pad": ("GQA413", config(pad_token_id=64)),
}


@pytest.fixture
def load_report() -> Iterator[Callable[[], str]]:
    """What transformers logs from here on."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield lambda: re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))
    logger.removeHandler(handler)
    logger.setLevel(level)


def promised(finding: Finding, *patterns: str) -> list[str]:
    words = [word for pattern in patterns for word in re.findall(pattern, finding.consequence)]
    assert words, f"{finding.code} promises nothing: {finding.consequence}"
    return words


@pytest.mark.parametrize("name", FAULTS)
def test_folder_with_a_fault_is_refused_in_the_words_that_were_promised(name, tmp_path, load_report):
    code, bend = FAULTS[name]
    sketch = sketch_llama(seed=1)
    bend(sketch)
    folder = sketch.write_folder(tmp_path / "model")
    finding = next(found for found in judged(open_checkpoint(str(folder))) if found.code == code)
    said = ""
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        said = str(error)
    words = promised(
        finding,
        rf"ckpt: {SHAPES} vs model:{SHAPES}",
        "MISSING|UNEXPECTED|Padding_idx must be within num_embeddings",
        r"The hidden size \(96\) is not a multiple of the number of attention heads \(9\)",
        r"`num_hidden_layers` \(3\) must be equal to the number of `layer_types` \(4\)",
    )
    for word in words:
        assert word in load_report() + said, (word, load_report(), said)
    assert bool(said) == any(word in finding.consequence for word in ("raises", "Error"))


@pytest.mark.parametrize("name", ["gate", "down", "gap", "heads", "one layer", "norm", "missing", "unknown"])
def test_state_dict_with_a_fault_is_refused_in_the_words_that_were_promised(name, tmp_path):
    code, bend = FAULTS[name]
    sketch = sketch_llama()
    bend(sketch)
    path = sketch.write_state_dict(tmp_path / "pytorch_model.bin")
    folder = sketch_llama().write_folder(tmp_path / "model")
    checkpoint = open_checkpoint(str(path), config=str(folder / "config.json"))
    finding = next(found for found in judged(checkpoint) if found.code == code)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(torch.load(path))
    for word in promised(finding, rf"the shape in current model is {SHAPES}", r"(?:Missing|Unexpected) key\(s\)"):
        assert word in str(caught.value)


SIZES = {
    "vocab_size": 64, "hidden_size": 96, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 12,
    "num_key_value_heads": 3, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


def parameter(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(sizes))


LIVE_FAULTS: dict[str, tuple[str, str, Callable[[], object]]] = {
    "gate": ("GQA301", "model.layers.1.mlp.gate_proj", lambda: linear(60, 96)),
    "gate of one row": ("GQA301", "model.layers.1.mlp.gate_proj", lambda: linear(1, 96)),
    "down": ("GQA302", "model.layers.1.mlp.down_proj", lambda: linear(96, 60)),
    "up columns": ("GQA303", "model.layers.1.mlp.up_proj", lambda: linear(72, 80)),
    "down rows": ("GQA303", "model.layers.1.mlp.down_proj", lambda: linear(80, 72)),
    "bias": ("GQA304", "model.layers.1.mlp.up_proj.bias", lambda: parameter(60)),
    "bias of one value": ("GQA304", "model.layers.1.mlp.up_proj.bias", lambda: parameter(1)),
    "norm": ("GQA409", "model.layers.1.input_layernorm.weight", lambda: parameter(48)),
    "norm of one value": ("GQA409", "model.layers.1.input_layernorm.weight", lambda: parameter(1)),
    "embedding": ("GQA408", "model.embed_tokens.weight", lambda: parameter(60, 96)),
    "lm_head": ("GQA408", "lm_head", lambda: linear(60, 96)),
    "lm_head width": ("GQA408", "lm_head", lambda: linear(64, 80)),
    "dtype": ("GQA414", "model.layers.1.mlp.up_proj", lambda: linear(72, 96).to(torch.bfloat16)),
}


def run_with(model: nn.Module, path: str, made: object) -> tuple[Finding, ...]:
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, made)
    return judged(describe_model(model))


@pytest.mark.parametrize("name", LIVE_FAULTS)
def test_module_with_a_fault_fails_in_the_words_that_were_promised(name):
    code, path, make = LIVE_FAULTS[name]
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    finding = next(found for found in run_with(model, path, make()) if found.code == code)
    tokens = torch.tensor([[3, 63, 5]])
    if "it runs" in finding.consequence:
        model(tokens)
        return
    with pytest.raises((RuntimeError, IndexError)) as caught:
        model(tokens)
    promise = finding.consequence.replace("Tx", "3x").removeprefix("IndexError: ")
    assert promise.partition(", for token ids")[0] in str(caught.value)


def test_layer_norm_of_another_width_fails_in_the_words_that_were_promised():
    model = Starcoder2ForCausalLM(Starcoder2Config(**SIZES)).eval()
    found = run_with(model, "model.layers.1.input_layernorm.weight", parameter(1))
    with pytest.raises(RuntimeError) as caught:
        model(torch.tensor([[3]]))
    assert next(finding for finding in found if finding.code == "GQA409").consequence in str(caught.value)


def test_pickle_whose_config_says_fewer_layers_runs_only_those():
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    tokens = torch.tensor([[3, 4, 5]])
    whole = model(tokens).logits
    model.config.num_hidden_layers = 1
    finding = next(found for found in judged(describe_model(model)) if found.code == "GQA401")
    assert "runs only the first 1 layer, without a word" in finding.consequence
    assert not torch.equal(model(tokens).logits, whole)


def test_stale_vocab_size_stops_the_training_step_and_not_the_forward_pass():
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model.config.vocab_size = 50
    finding = next(found for found in judged(describe_model(model)) if found.code == "GQA408")
    assert "training step" in finding.consequence
    tokens = torch.tensor([[3, 4, 5]])
    model(tokens)
    with pytest.raises(RuntimeError):
        model(tokens, labels=tokens)


def test_llama_that_its_config_refuses_computes_the_same_as_mistral(tmp_path):
    sketch = sketch_llama(seed=3, n_q_heads=9, n_kv_heads=3, head_dim=8, hidden_size=96, dtype="float32")
    finding = next(
        f for f in judged(open_checkpoint(str(sketch.write_folder(tmp_path / "llama")))) if f.code == "GQA406"
    )
    assert 'model_type "mistral" with sliding_window null' in finding.fix
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    sketch.config |= {"model_type": "mistral", "sliding_window": None, "architectures": ["MistralForCausalLM"]}
    out = AutoModelForCausalLM.from_pretrained(sketch.write_folder(tmp_path / "mistral")).eval()

    config = LlamaConfig(**{**SIZES, "intermediate_size": 128, "num_hidden_layers": 3, "head_dim": 8})
    config.rms_norm_eps = out.config.rms_norm_eps
    same = LlamaForCausalLM(config).eval()
    for ours, theirs in zip(same.model.layers, out.model.layers, strict=True):
        ours.self_attn.num_key_value_groups = 3
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(ours.self_attn, name, linear(*getattr(theirs.self_attn, name).weight.shape))
    same.load_state_dict(out.state_dict())
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(same(tokens).logits, out(tokens).logits)
