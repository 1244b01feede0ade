"""Reads what `pairing_fit` needs of a checkpoint: every v head, and the first rows of every o_proj, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import MissingDependency, ReadError
from gqacheck.geometry.facts import Attention, Geometry
from gqacheck.geometry.origins import PairingFit
from gqacheck.lineage.arrays import have_numpy
from gqacheck.lineage.matrix import Matrix, attention_matrices
from gqacheck.lineage.pair import Progress, Samples
from gqacheck.lineage.pairing_fit import LayerBasis, channel_correlations, gram, judge_pairing
from gqacheck.lineage.reader import LineReader

if TYPE_CHECKING:
    from gqacheck.lineage.pairing_fit import Numbers

OUTPUT_ROWS: Final = 1024
"""Rows of o_proj that are read, or a quarter of them where that is more: a quarter told as much as the whole."""
BLOCK_NUMBERS: Final = 1 << 20
"""Numbers of a weight that are in memory at once, 4 MB."""
LAYER_NUMBERS: Final = 1 << 23
"""Correlations of one layer at most; published models stay below half of it."""
MODEL_NUMBERS: Final = 1 << 28
"""Correlations of the whole model at most, 1 GiB."""
_INFERRED = ("inferred", "guessed", "the ")


def fit_pairing(
    checkpoint: Checkpoint, geometry: Geometry, *, samples: Samples | None = None, progress: Progress | None = None
) -> PairingFit:
    """Return what the weights alone say of the pairing of v heads and o_proj columns; a layer that cannot be judged is
    named in ``left_out`` with the reason.

    samples: how lines of a live model are read; a checkpoint's are read from its files.

    Raises:
        MissingDependency: numpy is not installed.
    """
    reason = _unfit(checkpoint, geometry)
    if reason:
        return PairingFit("not-judged", reason)
    if not have_numpy():
        raise MissingDependency("--values", "lineage")
    started = perf_counter()
    bases: list[LayerBasis] = []
    left_out: list[str] = []
    room = MODEL_NUMBERS
    with LineReader() as reader:
        for number, layer in enumerate(geometry.layers):
            if progress is not None:
                progress("weights", number, geometry.n_layers)
            if layer.attention.kind != "full":
                continue
            try:
                basis = _basis(checkpoint, geometry, layer.index, layer.attention, samples or reader.samples, room)
            except ReadError as error:
                left_out.append(f"layer {layer.index}: {error}")
                continue
            room -= basis.values.size + basis.outputs.size
            bases.append(basis)
        if progress is not None:
            progress("weights", geometry.n_layers, geometry.n_layers)
        bytes_read = reader.bytes_read
    if bases or not left_out:
        fit = judge_pairing(bases)
    else:
        fit = PairingFit("not-judged", f"no layer could be judged: {left_out[0]}")
    return replace(fit, left_out=tuple(left_out), bytes_read=bytes_read, seconds=perf_counter() - started)


def _unfit(checkpoint: Checkpoint, geometry: Geometry) -> str:
    """Why nothing can be said of the whole file, "" when something can."""
    if checkpoint.quantization is not None:
        return f"the weights are packed ({checkpoint.quantization}), so their values are not the layer's"
    if not geometry.layers:
        return "no decoder layers were found"
    kinds = {layer.attention.kind for layer in geometry.layers}
    if geometry.family.attention == "mla" or "mla" in kinds:
        return "multi-head latent attention has no v heads of its own"
    if "full" not in kinds:
        return "no layer stores softmax attention, so there are no heads to pair"
    if geometry.family.generic:
        return "the model family is not known, so neither is which KV head a query head reads"
    return ""


def _basis(
    checkpoint: Checkpoint, geometry: Geometry, index: int, attention: Attention, samples: Samples, room: int
) -> LayerBasis:
    """The correlations of one layer.

    Raises:
        ReadError: it cannot be read, or what a query head reads is not certain; with the reason.
    """
    n_q, n_kv, head_dim = _counts(attention)
    numbers = (n_q + n_kv) * head_dim * (head_dim - 1) // 2
    if numbers > min(LAYER_NUMBERS, room):
        raise ReadError(f"{n_q} + {n_kv} heads of {head_dim} channels have more correlations than are compared")
    matrices = attention_matrices(geometry, attention, checkpoint.tensors)
    v, o = matrices.get("v"), matrices.get("o")
    if v is None or o is None:
        raise ReadError(f"the values of {'v_proj' if v is None else 'o_proj'} cannot be told from its tensor")
    if v.n_lines != n_kv * head_dim or o.n_lines != n_q * head_dim:
        raise ReadError("v_proj or o_proj is not stored as it was measured")
    values = channel_correlations(_value_grams(v, n_kv, head_dim, samples))
    outputs = channel_correlations(gram(_output_blocks(o.turned, head_dim, samples)))
    return LayerBasis(index, values, outputs, tuple(head * n_kv // n_q for head in range(n_q)))


def _counts(attention: Attention) -> tuple[int, int, int]:
    """Query heads, KV heads and head_dim of a layer whose query heads read KV heads one group after the other.

    Raises:
        ReadError: they are not certain, or do not divide.
    """
    if attention.v is None:
        raise ReadError("it has no v_proj of its own")
    if attention.q is None or attention.k is None or attention.o is None:
        raise ReadError("it does not have all of q_proj, k_proj and o_proj")
    if attention.head_dim is None:
        raise ReadError("head_dim is not known: give --head-dim N or --config FILE")
    head_dim, rival = attention.head_dim.value, _rival(attention)
    if attention.head_dim.source.startswith("guessed"):
        raise ReadError("head_dim was guessed: give --head-dim N or --config FILE")
    if rival is not None:
        raise ReadError(f"head_dim may be {head_dim} or {rival}: give --head-dim N")
    n_q, n_kv = attention.n_q_heads, attention.n_kv_heads
    if not n_q or not n_kv or n_q % n_kv or head_dim < 2:
        raise ReadError("its query heads do not divide over its KV heads")
    if attention.v.rows != n_kv * head_dim or attention.o.columns != n_q * head_dim:
        raise ReadError("v_proj does not have the heads of k_proj, or o_proj those of q_proj")
    return n_q, n_kv, head_dim


def _rival(attention: Attention) -> int | None:
    """Another head_dim that a source as good names and the rows allow; a wrong one would compare halves of heads."""
    assert attention.head_dim is not None
    claims = attention.head_dim.claims
    firm = [claim for claim in claims if not claim.source.startswith(_INFERRED)] or claims
    rows = [part.rows for part in (attention.q, attention.k, attention.v) if part is not None]
    for claim in firm:
        if claim.value != attention.head_dim.value and not any(n % claim.value for n in rows):
            return claim.value
    return None


def _value_grams(v: Matrix, n_heads: int, head_dim: int, samples: Samples) -> Numbers:
    """[Hkv, D, D], read head by head."""
    import numpy as np

    heads = [_rows(v, head * head_dim, head_dim) for head in range(n_heads)]
    return np.concatenate([gram(_element_blocks(head, samples)) for head in heads])


def _element_blocks(head: Matrix, samples: Samples) -> Iterator[Numbers]:
    """The lines of one head as [1, D, elements], some elements at a time."""
    step = max(1, BLOCK_NUMBERS // max(1, head.n_lines))
    for start in range(0, max(1, head.n_elements), step):
        window = range(start, min(start + step, head.n_elements))
        yield _numbers(samples(head, window), head).reshape(1, head.n_lines, len(window))


def _output_blocks(rows: Matrix, head_dim: int, samples: Samples) -> Iterator[Numbers]:
    """The first rows of o_proj [rows, Hq * D] as [Hq, D, rows], some rows at a time."""
    wanted = min(rows.n_lines, max(OUTPUT_ROWS, -(-rows.n_lines // 4)))
    step = max(1, BLOCK_NUMBERS // max(1, rows.n_elements))
    for start in range(0, max(1, wanted), step):
        block = _rows(rows, start, min(step, wanted - start))
        found = _numbers(samples(block, range(rows.n_elements)), block)
        yield found.reshape(block.n_lines, rows.n_elements // head_dim, head_dim).transpose(1, 2, 0)


def _rows(matrix: Matrix, start: int, count: int) -> Matrix:
    """``count`` lines of the matrix from ``start`` on."""
    return replace(matrix, lines=matrix.lines[start : start + count])


def _numbers(lines: list[bytes], matrix: Matrix) -> Numbers:
    """The elements of the lines one after the other in float32, NaN and Inf as they are."""
    import numpy as np

    data = b"".join(lines)
    if matrix.info.dtype == "bfloat16":
        widened: Numbers = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
        return widened
    code = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}[matrix.info.dtype]
    with np.errstate(over="ignore"):
        found: Numbers = np.frombuffer(data, dtype=code).astype(np.float32)
    return found
