"""What the weights alone say of trained models: never a word against a correct cut, and most wrong ones are seen."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gqacheck.checkpoint import StorageInfo, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import PairingFit
from gqacheck.lineage import values
from gqacheck.lineage.matrix import Matrix
from gqacheck.lineage.pairing_fit import (
    LayerBasis,
    chance_spreads,
    channel_correlations,
    gram,
    judge_pairing,
    points_by_chance,
)
from gqacheck.lineage.values import fit_pairing
from gqacheck.testing.cuts import take_heads, take_layers
from gqacheck.testing.sketch import LINEAR, Sketch, SketchModule, sketch_llama
from gqacheck.testing.writers import tensor

FIXTURES = Path(__file__).parents[2] / "fixtures"
DTYPES = {"BF16": "bfloat16", "F32": "float32", "F16": "float16"}
SIX = (0, 2, 3, 4, 6, 7)


def trained(name: str) -> Sketch:
    """A trained fixture as a sketch, which can be cut."""
    data = (FIXTURES / name / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, start = json.loads(data[8 : 8 + size]), 8 + size
    config = json.loads((FIXTURES / name / "config.json").read_text(encoding="utf-8"))
    sketch = Sketch({}, {}, config)
    for key, entry in header.items():
        if key != "__metadata__":
            a, b = entry["data_offsets"]
            sketch.tensors[key] = tensor(entry["shape"], DTYPES[entry["dtype"]], data[start + a : start + b])
    for index in range(config["num_hidden_layers"]):
        path = f"{sketch.layer(index)}.self_attn"
        sketch.modules[path] = SketchModule("Attention")
        for role in "qkvo":
            sketch.modules[f"{path}.{role}_proj"] = SketchModule(LINEAR)
    return sketch


def read(sketch: Sketch, folder: Path) -> PairingFit:
    """The fit of the sketch, written as a folder and read back; the config says what the first layer has."""
    width, path = sketch.head_dim, f"{sketch.layer(0)}.self_attn"
    sketch.config |= {
        "head_dim": width,
        "num_attention_heads": sketch.shape(f"{path}.q_proj.weight")[0] // width,
        "num_key_value_heads": sketch.shape(f"{path}.k_proj.weight")[0] // width,
    }
    checkpoint = open_checkpoint(sketch.write_folder(folder / "model"))
    return fit_pairing(checkpoint, measure(checkpoint))


def counts(sketch: Sketch) -> tuple[int, int, int]:
    config = sketch.config
    return config["num_attention_heads"], config["num_key_value_heads"], config["num_hidden_layers"]


def correct(sketch: Sketch, kind: str, seed: int) -> None:
    """Cut every layer by itself, rightly."""
    n_q, n_kv, n_layers = counts(sketch)
    group, chance = n_q // n_kv, random.Random(f"{kind} {seed}")
    n_kept, n_inside = chance.randint(2, n_kv - 1), chance.randint(1, group - 1)
    for index in range(n_layers):
        kv, width = sorted(chance.sample(range(n_kv), n_kept)), group
        if kind == "reordered":
            chance.shuffle(kv)
        elif kind == "inside":
            kv, width = list(range(n_kv)), n_inside
        members = [sorted(chance.sample(range(head * group, (head + 1) * group), width)) for head in kv]
        for heads in members if kind == "reordered" else ():
            chance.shuffle(heads)
        take_heads(sketch, index, q=[head for heads in members for head in heads], kv=kv)
    if kind == "layers dropped":
        take_layers(sketch, [0, *range(2, n_layers)])


@pytest.mark.parametrize("name", ["llama-32x8", "qwen2-28x4", "copy-12x3"])
@pytest.mark.parametrize("kind", ["groups", "reordered", "inside", "layers dropped"])
def test_correct_cut_of_a_trained_model_is_not_suspect(name: str, kind: str, tmp_path: Path) -> None:
    for seed in range(3):
        sketch = trained(name)
        correct(sketch, kind, seed)
        fit = read(sketch, tmp_path / str(seed))
        assert fit.verdict in ("no-sign", "cannot-tell"), (seed, fit)
        assert fit.judged
        assert not fit.left_out


@pytest.mark.parametrize("name", ["llama-32x8", "qwen2-28x4", "copy-12x3"])
def test_uncut_trained_model_has_heads_at_home_and_none_astray(name: str, tmp_path: Path) -> None:
    sketch = trained(name)
    n_q, _, n_layers = counts(sketch)
    fit = read(sketch, tmp_path)
    assert fit.verdict != "suspect"
    assert fit.judged == n_q * n_layers
    assert fit.at_home > fit.judged / 3
    assert not fit.strays


def truncated() -> Sketch:
    """The Llama with KV heads 1 and 5 removed from every layer, and the last query heads instead of theirs."""
    sketch = trained("llama-32x8")
    for index in range(6):
        take_heads(sketch, index, q=range(24), kv=SIX)
    return sketch


def test_truncated_trained_model_is_suspect_and_names_the_v_heads_that_were_left_behind(tmp_path: Path) -> None:
    fit = read(truncated(), tmp_path)
    assert fit.verdict == "suspect"
    assert len(fit.strays) > 20
    assert fit.layers == tuple(range(6))
    owned = [stray for stray in fit.strays if SIX[stray.found] == stray.query_head // 4]
    assert len(owned) >= 0.9 * len(fit.strays)
    for stray in fit.strays:
        assert stray.reads == stray.query_head // 4
        assert stray.found != stray.reads
        assert stray.fit_found >= fit.needed_fit
        assert stray.fit_found - stray.fit_read >= 2


def test_correct_cut_with_the_same_shapes_as_the_truncated_one_is_not(tmp_path: Path) -> None:
    sketch = trained("llama-32x8")
    for index in range(6):
        take_heads(sketch, index, q=[4 * head + n for head in SIX for n in range(4)], kv=SIX)
    fit = read(sketch, tmp_path)
    assert fit.verdict != "suspect"
    assert not fit.strays


def test_v_heads_left_behind_under_chosen_groups_are_suspect(tmp_path: Path) -> None:
    sketch = trained("llama-32x8")
    for index in range(6):
        take_heads(sketch, index, q=[4 * head + n for head in SIX for n in range(4)], kv=SIX, v=range(6))
    assert read(sketch, tmp_path).verdict == "suspect"


def test_wrong_k_heads_are_not_seen(tmp_path: Path) -> None:
    sketch = trained("llama-32x8")
    for index in range(6):
        take_heads(sketch, index, q=[4 * head + n for head in SIX for n in range(4)], kv=range(6), v=SIX)
    assert read(sketch, tmp_path).verdict != "suspect"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stored_dtype_changes_nothing(dtype: str, tmp_path: Path) -> None:
    from gqacheck.lineage.cast import cast

    sketch = truncated()
    plain = read(sketch.copy(), tmp_path / "plain")
    for name, old in sketch.tensors.items():
        sketch.tensors[name] = tensor(old.shape, dtype, cast(old.dense(), "bfloat16", dtype))
    fit = read(sketch, tmp_path / dtype)
    assert fit.verdict == plain.verdict == "suspect"
    assert [(s.layer, s.query_head, s.found) for s in fit.strays] == [
        (s.layer, s.query_head, s.found) for s in plain.strays
    ]


@pytest.mark.parametrize("shape", [(12, 3, 8), (28, 4, 4), (32, 8, 8), (6, 2, 16)])
def test_random_weights_are_not_suspect(shape: tuple[int, int, int], tmp_path: Path) -> None:
    n_q, n_kv, width = shape
    for seed in range(2):
        sketch = sketch_llama(
            n_layers=4, n_q_heads=n_q, n_kv_heads=n_kv, head_dim=width, hidden_size=96, vocab_size=32, seed=seed + 1
        )
        fit = read(sketch, tmp_path / str(seed))
        assert fit.verdict == "cannot-tell"
        assert fit.judged == 4 * n_q


def test_weights_without_a_tie_are_accused_as_rarely_as_promised() -> None:
    """At most 1 file in 300; low rank and spiky columns are what fools the level alone."""
    suspects = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        layers = []
        for index in range(4):
            v = rng.standard_normal((6, 8, 2)) @ rng.standard_normal((6, 2, 64))
            o = rng.standard_normal((24, 8, 2)) @ rng.standard_normal((24, 2, 64))
            made = [channel_correlations(gram([block.astype(np.float32)])) for block in (v, o)]
            layers.append(LayerBasis(index, made[0], made[1], tuple(head // 4 for head in range(24))))
        suspects += judge_pairing(layers).verdict == "suspect"
    assert suspects <= 1


@pytest.mark.parametrize("value", ["nan", "inf", "zero"])
def test_head_without_numbers_takes_no_part_and_warns_nobody(value: str, tmp_path: Path) -> None:
    sketch = truncated()
    path = f"{sketch.layer(0)}.self_attn"
    for name in (f"{path}.v_proj.weight", f"{path}.o_proj.weight"):
        old = sketch.tensors[name]
        data = bytearray(old.dense())
        data[: 256 * 8 * 2] = {"nan": b"\xc0\x7f", "inf": b"\x80\x7f", "zero": b"\0\0"}[value] * (256 * 8)
        sketch.tensors[name] = tensor(old.shape, "bfloat16", bytes(data))
    with np.errstate(all="raise"):
        fit = read(sketch, tmp_path)
    assert fit.verdict == "suspect"
    assert all(np.isfinite((stray.fit_read, stray.fit_found)).all() for stray in fit.strays)


def test_reading_in_small_blocks_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(truncated(), tmp_path / "whole")
    monkeypatch.setattr(values, "BLOCK_NUMBERS", 1000)
    parts = read(truncated(), tmp_path / "parts")
    assert parts.verdict == whole.verdict
    assert [(s.layer, s.query_head, s.found) for s in parts.strays] == [
        (s.layer, s.query_head, s.found) for s in whole.strays
    ]


def test_o_proj_is_read_as_far_as_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(truncated(), tmp_path / "whole")
    assert whole.bytes_read == 6 * 2 * 256 * (6 * 8 + 24 * 8)
    monkeypatch.setattr(values, "OUTPUT_ROWS", 16)
    quarter = read(truncated(), tmp_path / "quarter")
    assert quarter.bytes_read == 6 * 2 * (256 * 6 * 8 + 64 * 24 * 8)
    assert quarter.verdict == "suspect"


def test_layer_that_cannot_be_judged_is_left_out_with_its_reason(tmp_path: Path) -> None:
    sketch = truncated()
    sketch.drop(f"{sketch.layer(1)}.self_attn.v_proj")
    take_heads(sketch, 2, q=range(23), kv=range(6))
    sketch.resize(f"{sketch.layer(3)}.self_attn.v_proj", rows=40)
    fit = read(sketch, tmp_path)
    assert fit.layers == (0, 4, 5)
    assert fit.verdict == "suspect"
    reasons = ["layer 1: it has no v_proj", "layer 2: its query heads do not divide", "layer 3: v_proj does not have"]
    assert [left.startswith(reason) for left, reason in zip(fit.left_out, reasons, strict=True)] == [True] * 3


def test_layers_with_one_kv_head_are_not_judged(tmp_path: Path) -> None:
    sketch = trained("copy-12x3")
    for index in range(3):
        take_heads(sketch, index, q=range(4), kv=[0])
    fit = read(sketch, tmp_path)
    assert (fit.verdict, fit.judged) == ("not-judged", 0)
    assert "second KV head" in fit.reason


def test_guessed_head_dim_is_not_judged(tmp_path: Path) -> None:
    sketch = sketch_llama(
        n_layers=2, n_q_heads=20, n_kv_heads=4, head_dim=128, hidden_size=16, intermediate_size=8, vocab_size=8, seed=1
    )
    checkpoint = open_checkpoint(sketch.write_state_dict(tmp_path / "pytorch_model.bin"))
    fit = fit_pairing(checkpoint, measure(checkpoint))
    assert fit.verdict == "not-judged"
    assert "head_dim was guessed" in fit.reason
    known = fit_pairing(checkpoint, measure(checkpoint, head_dim=128))
    assert known.judged == 40


def test_head_dim_that_two_sources_name_otherwise_is_not_judged(tmp_path: Path) -> None:
    """Halves of heads would be compared: each half of a query head fits the other half of its own v head."""
    sketch = trained("llama-32x8")
    checkpoint = open_checkpoint(sketch.write_folder(tmp_path / "model"))
    assert fit_pairing(checkpoint, measure(checkpoint, head_dim=8)).judged
    fit = fit_pairing(checkpoint, measure(checkpoint, head_dim=4))
    assert fit.verdict == "not-judged"
    assert "head_dim may be 4 or 8" in fit.reason


def test_unknown_family_is_not_judged(tmp_path: Path) -> None:
    sketch = trained("llama-32x8")
    sketch.config["model_type"] = "something_new"
    sketch.config["architectures"] = ["SomethingNew"]
    fit = read(sketch, tmp_path)
    assert fit.verdict == "not-judged"
    assert "family is not known" in fit.reason
    assert not fit.bytes_read


def test_more_correlations_than_fit_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MODEL_NUMBERS", 3 * 40 * 28)
    fit = read(trained("llama-32x8"), tmp_path)
    assert fit.layers == (0, 1, 2)
    assert [left.partition(":")[0] for left in fit.left_out] == ["layer 3", "layer 4", "layer 5"]


def test_unreadable_weights_are_left_out_and_accuse_nobody(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(trained("copy-12x3").write_folder(tmp_path / "model"))

    def samples(matrix: Matrix, window: object) -> list[bytes]:
        raise ReadError(f"{matrix.info.name} has no bytes")

    fit = fit_pairing(checkpoint, measure(checkpoint), samples=samples)
    assert fit.verdict == "not-judged"
    assert "no layer could be judged: layer 0: model.layers.0.self_attn.v_proj.weight has no bytes" in fit.reason
    assert len(fit.left_out) == 3


def test_progress_is_told_layer_by_layer(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    checkpoint = open_checkpoint(trained("copy-12x3").write_folder(tmp_path / "model"))
    fit_pairing(checkpoint, measure(checkpoint), progress=lambda *step: told.append(step))
    assert told == [("weights", n, 3) for n in range(4)]


def test_float64_is_read_and_what_float32_cannot_hold_is_left_out() -> None:
    data = np.array([[1.0, 2.0], [1e300, 3.0]])
    info = TensorInfo("x", (2, 2), "float64", (2, 1), 0, StorageInfo("", "0", 0, 32, 32))
    matrix = Matrix(info, 0, range(2), 2, range(2), 1)
    found = values._numbers([data.astype("<f8").tobytes()], matrix).reshape(1, 2, 2)
    assert found.dtype == np.float32
    assert not channel_correlations(gram([found])).any()


def test_correlations_do_not_change_when_channels_are_scaled() -> None:
    rng = np.random.default_rng(3)
    heads = rng.standard_normal((5, 7, 40)).astype(np.float32)
    scales = np.exp(rng.standard_normal((5, 7, 1))).astype(np.float32)
    one, other = channel_correlations(gram([heads])), channel_correlations(gram([scales * heads]))
    assert one.shape == (5, 21)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    lines = heads[0] / np.linalg.norm(heads[0], axis=1, keepdims=True)
    cosines = (lines @ lines.T)[np.triu_indices(7, 1)]
    np.testing.assert_allclose(one[0], cosines / np.linalg.norm(cosines), atol=1e-5)


def test_chance_spread_is_that_of_the_other_layers_and_never_below_a_random_basis() -> None:
    rng = np.random.default_rng(5)

    def basis(index: int, pairs: int, n_q: int, n_kv: int) -> LayerBasis:
        values_, outputs = rng.standard_normal((n_kv, pairs)), rng.standard_normal((n_q, pairs))
        lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (values_, outputs)]
        return LayerBasis(index, values_ / lengths[0], outputs / lengths[1], tuple(h * n_kv // n_q for h in range(n_q)))

    layers = [basis(0, 6, 12, 3), basis(1, 10, 8, 2), basis(2, 6, 8, 4), basis(3, 6, 6, 2)]
    spreads = chance_spreads(layers)
    for number, layer in enumerate(layers):
        others = [x for x in layers if x is not layer and x.values.shape[1] == layer.values.shape[1]]
        floor = layer.values.shape[1] ** -0.5
        for head in range(len(layer.outputs)):
            for kv in range(len(layer.values)):
                wanted = floor
                if others:
                    seen = [layer.outputs[head] @ v for x in others for v in x.values]
                    back = [layer.values[kv] @ o for x in others for o in x.outputs]
                    wanted = max(floor, np.mean(np.square(seen)) ** 0.5, np.mean(np.square(back)) ** 0.5)
                assert spreads[number][head, kv] == pytest.approx(wanted, rel=1e-6)


def test_heads_that_point_at_one_v_head_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """One v head that is pointed at says nothing; two do."""
    rng = np.random.default_rng(1)
    layers = []
    for index in range(6):
        v = rng.standard_normal((6, 16, 64)).astype(np.float32)
        o = np.repeat(v, 4, axis=0) + 0.3 * rng.standard_normal((24, 16, 64)).astype(np.float32)
        made = [channel_correlations(gram([block])) for block in (v, o)]
        layers.append(LayerBasis(index, made[0], made[1], tuple(head // 4 for head in range(24))))
    assert judge_pairing(layers).verdict == "no-sign"
    swapped = layers[0].outputs.copy()
    swapped[0] = layers[0].outputs[4]
    one = [LayerBasis(0, layers[0].values, swapped, layers[0].reads), *layers[1:]]
    assert judge_pairing(one).verdict == "cannot-tell"
    assert [(s.query_head, s.reads, s.found) for s in judge_pairing(one).strays] == [(0, 0, 1)]
    both = swapped.copy()
    both[4] = layers[0].outputs[0]
    two = [LayerBasis(0, layers[0].values, both, layers[0].reads), *layers[1:]]
    assert judge_pairing(two).verdict == "suspect"
    monkeypatch.setattr("gqacheck.lineage.pairing_fit.points_by_chance", lambda *given: False)
    assert judge_pairing(one).verdict == "cannot-tell"


def test_scrambles_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[object] = []
    made = np.random.default_rng

    def seeded(*seed: object) -> np.random.Generator:
        seeds.append(seed)
        return made(7)

    rng = made(2)
    correlations = channel_correlations(gram([rng.standard_normal((6, 5, 9))]))
    layer = LayerBasis(0, correlations[:2], correlations[2:], (0, 0, 1, 1))
    monkeypatch.setattr(np.random, "default_rng", seeded)
    points_by_chance([layer], chance_spreads([layer]), 1.0, 1)
    assert seeds == [(0,)]


def test_fused_qkv_is_read_like_separate_projections(tmp_path: Path) -> None:
    sketch = truncated()
    plain = read(sketch.copy(), tmp_path / "plain")
    for index in range(6):
        path = f"{sketch.layer(index)}.self_attn"
        parts = [sketch.tensors.pop(f"{path}.{role}_proj.weight") for role in "qkv"]
        rows = sum(part.shape[0] for part in parts)
        sketch.tensors[f"{path}.qkv_proj.weight"] = tensor(
            (rows, 256), "bfloat16", b"".join(part.dense() for part in parts)
        )
    sketch.config |= {"model_type": "phi3", "num_attention_heads": 24, "num_key_value_heads": 6, "head_dim": 8}
    sketch.config["architectures"] = ["Phi3ForCausalLM"]
    checkpoint = open_checkpoint(sketch.write_folder(tmp_path / "fused"))
    fit = fit_pairing(checkpoint, measure(checkpoint))
    assert fit.verdict == "suspect", fit
    assert len(fit.strays) == len(plain.strays)


def test_transposed_storage_is_read_right() -> None:
    data = np.arange(48, dtype="<f4")
    storage = StorageInfo("", "0", 0, data.nbytes, data.nbytes)
    info = TensorInfo("x", (6, 8), "float32", (1, 6), 0, storage)
    matrix = Matrix(info, 0, range(6), 1, range(8), 6)

    def samples(given: Matrix, window: object) -> list[bytes]:
        return [
            b"".join(
                data[given.base + line * given.line_stride + given.elements[e] * given.stride].tobytes() for e in window
            )  # type: ignore[attr-defined]
            for line in given.lines
        ]

    blocks = list(values._output_blocks(matrix, 4, samples))
    assert len(blocks) == 1
    np.testing.assert_array_equal(blocks[0], data.reshape(8, 6).T.reshape(6, 2, 4).transpose(1, 2, 0))


def live(sketch: Sketch) -> Any:
    """The attention of the sketch as a live module, o_proj as a transposed view."""
    torch = pytest.importorskip("torch")

    class LlamaForCausalLM(torch.nn.Module):  # type: ignore[misc,name-defined]
        pass

    model = LlamaForCausalLM()
    model.config = dict(sketch.config)
    for name, stored in sketch.tensors.items():
        *path, leaf = name.split(".")
        parent = model
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, torch.nn.Module())
            parent = parent._modules[part]
        data = torch.frombuffer(bytearray(stored.dense()), dtype=torch.bfloat16).reshape(stored.shape)
        if "o_proj" in name:
            data = data.T.contiguous().T
        parent.register_parameter(leaf, torch.nn.Parameter(data))
    return model


def test_live_model_is_read_like_its_file(tmp_path: Path) -> None:
    from gqacheck.api import check, check_model

    sketch = truncated()
    model = live(sketch)
    read(sketch, tmp_path)
    stored, running = check(tmp_path / "model", values=True), check_model(model, values=True)
    assert stored.pairing_fit is not None
    assert running.pairing_fit is not None
    assert running.pairing_fit.strays == stored.pairing_fit.strays
    assert "GQA504" in {finding.code for finding in running.findings} & {finding.code for finding in stored.findings}
    assert check_model(model).pairing_fit is None
