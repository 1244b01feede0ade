"""Nothing that a file can say makes `measure` raise anything but GqacheckError, or take long."""

from __future__ import annotations

import time
from typing import Any

import pytest
from geometry_goldens import NAMES, checkpoint, golden, llama, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from gqacheck.checkpoint import Checkpoint, Container, ModuleInfo, TensorInfo
from gqacheck.errors import GqacheckError
from gqacheck.geometry.measure import measure

REAL_NAMES = sorted({name for golden_name in NAMES for name in golden(golden_name)["disk"]})
pieces = st.sampled_from(
    [
        "model", "layers", "h", "0", "1", "2", "7", "self_attn", "q_proj", "k_proj", "v_proj", "o_proj",
        "weight", "bias", "mlp", "experts", "up_proj", "gate", "language_model", "module", "_orig_mod",
        "base_layer", "lora_A", "visual", "norms", "qkv_proj", "linear_attn", "mtp", "embed_tokens", "norm",
        "lm_head", "\x1b[31m", "\n", ".", "é", "999999", "10000000000000000000000000", "inv_freq", "rotary_emb",
        "sinks", "gate_up_proj_scales", "qweight",
    ]
)  # fmt: skip
names = st.one_of(st.sampled_from(REAL_NAMES), st.lists(pieces, max_size=8).map(".".join), st.text(max_size=12))
sizes = st.one_of(st.integers(0, 200), st.sampled_from([0, 1, 8, 96, 2**31, 2**63, 10**30]))
shapes = st.lists(sizes, max_size=5).map(tuple)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(()), st.just({}))
modules = st.builds(
    lambda path, cls, attributes: ModuleInfo(path, cls, attributes),
    names,
    st.sampled_from(["", "x", "a.LlamaForCausalLM", "Qwen2DecoderLayer", "torch.nn.Linear", "é.\n"]),
    st.dictionaries(st.sampled_from(["head_dim", "num_heads", "layer_idx"]), plain, max_size=3),
)
configs = st.none() | st.dictionaries(
    st.sampled_from(
        ["model_type", "head_dim", "hidden_size", "num_attention_heads", "num_key_value_heads", "text_config"]
    ),
    plain | st.sampled_from(["llama", "falcon", "deepseek_v3", "gpt_oss", "qwen3_next"]),
    max_size=6,
)


def raw(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    return TensorInfo(name, shape, dtype, (1,) * len(shape))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.dictionaries(names, st.tuples(shapes, st.sampled_from(["float16", "uint8", "int32", "nonsense"])), max_size=40),
    st.lists(modules, max_size=4),
    configs,
    st.sampled_from([None, "gptq"]),
    st.sampled_from([None, "llama", "generic", "falcon", "deepseek_v2", "stablelm"]),
)
def test_measure_any_names_and_shapes_raises_only_ours(
    tensors: dict[str, tuple[tuple[int, ...], str]],
    given_modules: list[ModuleInfo],
    config: Any,
    quantization: str | None,
    family: str | None,
) -> None:
    given = checkpoint(
        [raw(name, shape, dtype) for name, (shape, dtype) in tensors.items()],
        config,
        given_modules,
        quantization=quantization,
    )
    try:
        geometry = measure(given, family=family)
    except GqacheckError:
        return
    accounted = set(geometry.unknown)
    assert accounted <= set(given.tensors)
    assert not {name for name, _ in geometry.missing} & accounted or quantization
    for layer in geometry.layers:
        assert layer.signature
        assert layer.attention.n_q_heads is None or layer.attention.n_q_heads >= 0
        assert layer.attention.n_kv_heads is None or layer.attention.n_kv_heads >= 0
    assert geometry.uniform in (True, False)


@pytest.mark.parametrize(
    "extra",
    [
        [f"weird.{i}.\x1b[0m{i}" for i in range(50_000)],
        [f"model.layers.{i % 4}.strange{i}.weight" for i in range(50_000)],
        [f"model.layers.{i + 10}.self_attn.q_proj.weight" for i in range(50_000)],
        [f"m{i}.layers.0.self_attn.q_proj.weight" for i in range(50_000)],
        [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(50_000)],
        ["model.layers." + "9" * 5_000 + ".self_attn.q_proj.weight"],
        [".".join(["layers", "0"] * 5_000) + str(i) for i in range(20)],
        ["a." * 20_000 + str(i) for i in range(20)],
    ],
    ids=["outside", "inside", "layers", "lists", "experts", "digits", "nested", "deep"],
)
@pytest.mark.parametrize("config", [None, {"model_type": "mixtral"}])
def test_measure_crowds_of_names_take_bounded_time(extra: list[str], config: Any) -> None:
    tensors = {t.name: t for t in llama()} | {name: raw(name, (1,), "float16") for name in extra}
    given = Checkpoint("x", ".", "test", Container.FOLDER, tensors, config=checkpoint([], config).config)
    refusal = ""
    start = time.process_time()
    try:
        measure(given)
    except GqacheckError as error:
        refusal = str(error)
    assert len(refusal) < 300
    assert time.process_time() - start < 5.0


def test_measure_zero_rows_have_zero_heads() -> None:
    shapes = {"model.layers.0.self_attn.q_proj.weight": (0, 96), "model.layers.0.self_attn.k_proj.weight": (0, 96)}
    tensors = [tensor(t.name, shapes.get(t.name, t.shape)) for t in llama()]
    attention = measure(checkpoint(tensors, {"model_type": "llama", "head_dim": 8})).layers[0].attention
    assert (attention.n_q_heads, attention.n_kv_heads) == (0, 0)
