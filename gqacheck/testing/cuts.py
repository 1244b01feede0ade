"""Cuts of sketches by head, channel and layer: right ones, and every way of getting one wrong.

::

    take_heads(sketch, 2, q=[0, 1, 2, 3, 8, 9, 10, 11], kv=[0, 2])           # two whole KV groups of a 4:1 layer
    take_heads(sketch, 2, q=range(8), kv=[0, 2])                             # the same shapes, wrong pairing
    take_channels(sketch, 2, gate=kept, up=range(len(kept)), down=kept)      # up does not belong to gate
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.testing.sketch import Sketch
from gqacheck.testing.writers import Tensor, tensor


def take_heads(
    sketch: Sketch,
    index: int,
    *,
    q: Iterable[int],
    kv: Iterable[int],
    v: Iterable[int] | None = None,
    o: Iterable[int] | None = None,
    q_bias: Iterable[int] | None = None,
    k_bias: Iterable[int] | None = None,
    v_bias: Iterable[int] | None = None,
) -> None:
    """Keep these heads of one layer, in this order, with module attributes in step.

    v follows kv and o follows q unless given; a bias follows its weight unless given.
    """
    q, kv = list(q), list(kv)
    values = kv if v is None else list(v)
    path, width = f"{sketch.layer(index)}.self_attn", sketch.head_dim
    for name, heads, bias in (("q_proj", q, q_bias), ("k_proj", kv, k_bias), ("v_proj", values, v_bias)):
        _take_rows(sketch, f"{path}.{name}", lines_of(heads, width), lines_of(heads if bias is None else bias, width))
    _take_columns(sketch, f"{path}.o_proj", lines_of(q if o is None else o, width))
    sizes = {
        "num_heads": len(q),
        "num_key_value_heads": len(kv),
        "num_key_value_groups": len(q) // max(1, len(kv)),
        "hidden_size": len(q) * width,
    }
    found = sketch.modules[path].attributes
    found |= {key: value for key, value in sizes.items() if key in found}


def take_channels(
    sketch: Sketch,
    index: int,
    *,
    gate: Iterable[int],
    up: Iterable[int] | None = None,
    down: Iterable[int] | None = None,
) -> None:
    """Keep these MLP channels of one layer, in this order; up and down follow gate unless given."""
    gate = list(gate)
    path = f"{sketch.layer(index)}.mlp"
    _take_rows(sketch, f"{path}.gate_proj", gate, gate)
    _take_rows(sketch, f"{path}.up_proj", list(gate if up is None else up), [])
    _take_columns(sketch, f"{path}.down_proj", list(gate if down is None else down))
    if "intermediate_size" in sketch.modules[path].attributes:
        sketch.modules[path].attributes["intermediate_size"] = len(gate)


def take_layers(sketch: Sketch, kept: Sequence[int]) -> None:
    """Keep these layers, in this order (one may stand twice), renumbered, with the config in step."""
    old = {name: value for name, value in sketch.tensors.items() if name.startswith("model.layers.")}
    modules = {name: value for name, value in sketch.modules.items() if name.startswith("model.layers.")}
    sketch.tensors = {name: value for name, value in sketch.tensors.items() if name not in old}
    sketch.modules = {name: value for name, value in sketch.modules.items() if name not in modules}
    for new, index in enumerate(kept):
        before, after = f"model.layers.{index}", f"model.layers.{new}"
        sketch.tensors |= {after + n[len(before) :]: t for n, t in old.items() if n.startswith(before + ".")}
        for name, module in modules.items():
            if name == before or name.startswith(before + "."):
                copy = type(module)(module.class_name, dict(module.attributes))
                if "layer_idx" in copy.attributes:
                    copy.attributes["layer_idx"] = new
                sketch.modules[after + name[len(before) :]] = copy
    sketch.config["num_hidden_layers"] = len(kept)


def lines_of(heads: Iterable[int], width: int) -> list[int]:
    """The rows (or columns) of these heads of ``width`` lines each.

    >>> lines_of([2, 0], 2)
    [4, 5, 0, 1]
    """
    return [head * width + line for head in heads for line in range(width)]


def _take_rows(sketch: Sketch, path: str, rows: Sequence[int], bias: Sequence[int]) -> None:
    sketch.tensors[f"{path}.weight"] = picked(sketch.tensors[f"{path}.weight"], rows=rows)
    if f"{path}.bias" in sketch.tensors:
        sketch.tensors[f"{path}.bias"] = picked(sketch.tensors[f"{path}.bias"], rows=bias)
    sketch.modules[path].attributes["out_features"] = len(rows)


def _take_columns(sketch: Sketch, path: str, columns: Sequence[int]) -> None:
    sketch.tensors[f"{path}.weight"] = picked(sketch.tensors[f"{path}.weight"], columns=columns)
    sketch.modules[path].attributes["in_features"] = len(columns)


def picked(old: Tensor, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> Tensor:
    """The rows and columns of a contiguous tensor, in this order."""
    size = len(old.storage.data) // max(old.storage.numel, 1)
    n_rows, n_columns = old.shape if len(old.shape) == 2 else (old.shape[0], 1)
    rows = range(n_rows) if rows is None else rows
    columns = range(n_columns) if columns is None else columns
    data, width = old.storage.data, n_columns * size
    lines = [data[row * width : (row + 1) * width] for row in rows]
    if list(columns) != list(range(n_columns)):
        lines = [b"".join([line[c * size : (c + 1) * size] for c in columns]) for line in lines]
    shape = (len(rows), len(columns)) if len(old.shape) == 2 else (len(rows),)
    return tensor(shape, old.storage.dtype, b"".join(lines), parameter=old.parameter)
