"""What the rules predict is what the stack says: every surgery is done to a real model, which is then run."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "static" / "rules"))

from harness import fires, silent  # noqa: E402

TOKENS = 4
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "olmo2": "Olmo2"}


def make(backend: str = "sdpa", family: str = "llama") -> Any:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 12,
        "num_key_value_heads": 3,
        "attn_implementation": backend,
    }
    if family != "olmo2":
        sizes["head_dim"] = 8
    torch.manual_seed(0)
    config = getattr(transformers, f"{FAMILIES[family]}Config")(**sizes)
    return getattr(transformers, f"{FAMILIES[family]}ForCausalLM")(config).eval()


def cut(linear: Any, rows: int | None = None, columns: int | None = None) -> None:
    """What a pruner does: weight, bias and attributes in step."""
    weight = linear.weight.data[:rows, :columns].clone()
    linear.weight = torch.nn.Parameter(weight)
    linear.out_features, linear.in_features = weight.shape
    if linear.bias is not None and rows is not None:
        linear.bias = torch.nn.Parameter(linear.bias.data[:rows].clone())


def error_of(model: Any, mask: Any = None) -> str | None:
    rows = 1 if mask is None else len(mask)
    try:
        with torch.no_grad():
            model(torch.arange(rows * TOKENS).reshape(rows, TOKENS), attention_mask=mask)
    except (RuntimeError, IndexError) as error:
        return " ".join(str(error).split())
    return None


def heads(q: int, kv: int, v: int | None = None, groups: int | None = None) -> Callable[[Any], None]:
    def surgery(attention: Any) -> None:
        cut(attention.q_proj, q * 8)
        cut(attention.o_proj, columns=q * 8)
        cut(attention.k_proj, kv * 8)
        cut(attention.v_proj, (kv if v is None else v) * 8)
        attention.num_key_value_groups = groups or q // kv

    return surgery


def norm(name: str, width: int) -> Callable[[Any], None]:
    return lambda attention: setattr(getattr(attention, name), "weight", torch.nn.Parameter(torch.ones(width)))


def bias(length: int) -> Callable[[Any], None]:
    return lambda attention: setattr(attention.q_proj, "bias", torch.nn.Parameter(torch.zeros(length)))


def number(value: int) -> Callable[[Any], None]:
    return lambda attention: setattr(attention, "layer_idx", value)


SURGERIES = [
    ("GQA101", "llama", lambda a: (cut(a.q_proj, 90), cut(a.o_proj, columns=90))),
    ("GQA102", "llama", lambda a: (cut(a.k_proj, 20), cut(a.v_proj, 20))),
    ("GQA103", "llama", heads(12, 3, v=2, groups=4)),
    ("GQA103", "llama", heads(12, 2, v=3, groups=4)),
    ("GQA103", "llama", heads(12, 3, v=1, groups=4)),
    ("GQA104", "llama", heads(10, 3)),
    ("GQA104", "llama", heads(10, 3, groups=4)),
    ("GQA104", "qwen2", heads(7, 2)),
    ("GQA106", "llama", lambda a: cut(a.o_proj, columns=80)),
    ("GQA106", "llama", lambda a: (cut(a.q_proj, 72), setattr(a, "num_key_value_groups", 3))),
    ("GQA107", "llama", lambda a: cut(a.q_proj, columns=80)),
    ("GQA107", "llama", lambda a: cut(a.o_proj, 80)),
    ("GQA108", "qwen2", bias(80)),
    ("GQA109", "qwen3", norm("q_norm", 6)),
    ("GQA109", "qwen3", norm("k_norm", 12)),
    ("GQA109", "olmo2", norm("q_norm", 80)),
    ("GQA111", "qwen3", lambda a: setattr(a, "head_dim", 4)),
    ("GQA204", "llama", heads(9, 3, groups=4)),
    ("GQA204", "llama", heads(12, 3, groups=2)),
    ("GQA204", "llama", heads(12, 3, groups=1)),
    ("GQA207", "llama", number(0)),
    ("GQA207", "llama", number(3)),
]


@pytest.mark.parametrize(
    ("code", "family", "surgery"), SURGERIES, ids=[f"{c}-{i}" for i, (c, *_) in enumerate(SURGERIES)]
)
def test_predicted_error_of_a_cut_module_is_what_both_backends_raise(
    code: str, family: str, surgery: Callable[[Any], object], tmp_path: Path
) -> None:
    raised = {}
    for backend in ("eager", "sdpa"):
        model = make(backend, family)
        surgery(model.model.layers[1].self_attn)
        raised[backend] = error_of(model)
        torch.save({"model": model, "tokenizer": None}, tmp_path / "m.bin")
    consequence = fires(tmp_path / "m.bin", code).consequence
    predicted = [text.removeprefix("IndexError: ").removesuffix(" …") for text in re.findall(r"`([^`]+)`", consequence)]
    assert predicted
    assert raised["eager"] is not None
    assert predicted[0] in raised["eager"]
    if "raises nothing" in consequence:
        assert raised["sdpa"] is None
    else:
        assert raised["sdpa"] is not None
        assert predicted[-1] in raised["sdpa"]


@pytest.mark.parametrize("surgery", [bias(1), norm("q_norm", 1)])
def test_width_of_one_runs_without_an_error_as_predicted(surgery: Callable[[Any], None], tmp_path: Path) -> None:
    model = make(family="qwen3")
    surgery(model.model.layers[1].self_attn)
    assert error_of(model) is None
    torch.save(model, tmp_path / "m.bin")
    code = "GQA109" if model.model.layers[1].self_attn.q_norm.weight.numel() == 1 else "GQA108"
    assert "broadcast" in fires(tmp_path / "m.bin", code).consequence


def test_silence_of_sdpa_ends_with_a_padded_batch_as_predicted() -> None:
    model = make("sdpa")
    heads(9, 3, groups=4)(model.model.layers[1].self_attn)
    assert error_of(model) is None
    assert error_of(model, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])) is not None


def test_attributes_that_new_classes_do_not_read_do_no_harm(tmp_path: Path) -> None:
    model = make()
    attention = model.model.layers[1].self_attn
    heads(9, 3)(attention)
    attention.num_heads, attention.num_key_value_heads, attention.hidden_size = 12, 3, 96
    assert error_of(model) is None
    torch.save(model, tmp_path / "m.bin")
    fires(tmp_path / "m.bin", "GQA203", severity="error" if reads_counts(attention) else "warning")
    silent(tmp_path / "m.bin", "GQA205")


def reads_counts(attention: Any) -> bool:
    return not hasattr(attention, "scaling") or hasattr(attention, "hidden_size")


def test_gap_in_layer_numbers_with_room_in_the_cache_runs_as_predicted(tmp_path: Path) -> None:
    model = make()
    number(3)(model.model.layers[1].self_attn)
    model.config.num_hidden_layers = 4
    assert error_of(model) is None
    torch.save(model, tmp_path / "m.bin")
    assert "made for 4 layers, so it runs" in fires(tmp_path / "m.bin", "GQA207").consequence


LORA = [
    (
        "GQA201",
        "q_proj",
        lambda a: (cut(a.q_proj, 72), cut(a.o_proj, columns=72), setattr(a.q_proj, "out_features", 96)),
    ),
    (
        "GQA202",
        "o_proj",
        lambda a: (cut(a.q_proj, 72), cut(a.o_proj, columns=72), setattr(a.o_proj, "in_features", 96)),
    ),
]


@pytest.mark.parametrize(("code", "target", "surgery"), LORA)
def test_predicted_error_of_lora_is_what_peft_raises(
    code: str, target: str, surgery: Callable[[Any], object], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = make()
    attention = model.model.layers[1].self_attn
    surgery(attention)
    attention.num_key_value_groups = 3
    torch.save(model, tmp_path / "m.bin")
    predicted = re.findall(r"`([^`]+)`", fires(tmp_path / "m.bin", code).consequence)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=[target]))
    assert error_of(adapted) == predicted[0]


def test_predicted_refusal_of_a_folder_is_in_the_load_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    heads(9, 3, v=2)(model.model.layers[1].self_attn)
    model.save_pretrained(tmp_path / "cut")
    predicted = fires(tmp_path / "cut", "GQA103").consequence
    caplog.set_level("WARNING", logger="transformers")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    shapes = re.search(r"Reinit due to size mismatch - ckpt: .* vs model:torch\.Size\(\[\d+, \d+\]\)", predicted)
    assert shapes is not None
    assert shapes[0] in caplog.text


def test_torch_load_with_weights_only_says_what_the_pickle_rules_predict(tmp_path: Path) -> None:
    torch.save(make(), tmp_path / "m.bin")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "m.bin", weights_only=True)
    assert "weights_only=False" in fires(tmp_path / "m.bin", "GQA011").consequence


def test_oversized_storage_of_a_sliced_weight_is_found_and_clone_mends_it(tmp_path: Path) -> None:
    model = make()
    up = model.model.layers[1].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.data[:100])
    torch.save(model, tmp_path / "m.bin")
    fires(tmp_path / "m.bin", "GQA013", says=["49.15 KB", "38.40 KB"])
    up.weight = torch.nn.Parameter(up.weight.data.contiguous())
    torch.save(model, tmp_path / "m.bin")
    fires(tmp_path / "m.bin", "GQA013")
    up.weight = torch.nn.Parameter(up.weight.data.clone())
    torch.save(model, tmp_path / "m.bin")
    silent(tmp_path / "m.bin", "GQA013")
