"""Random cuts of random tiny parents, as plain plans that a test can look at, and their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Lineage
from gqacheck.lineage.cast import cast
from gqacheck.lineage.trace import trace_lineage
from gqacheck.testing.cuts import take_channels, take_heads, take_layers
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import tensor

CASES = int(os.environ.get("GQACHECK_CASES", "60"))
"""Examples of one property; `make thorough` sets thousands."""
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent to be: its heads, sizes and dtype."""

    n_q_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    dtype: str
    bias: bool
    seed: int

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.n_q_heads // self.n_kv_heads

    def sketch(self) -> Sketch:
        """The parent with noise for weights."""
        return sketch_llama(
            n_layers=self.n_layers,
            hidden_size=self.hidden_size,
            n_q_heads=self.n_q_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=32,
            dtype=self.dtype,
            seed=self.seed,
            family="qwen2" if self.bias else "llama",
            qkv_bias=self.bias,
        )


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer keeps: heads and channels of the parent's layer, in the child's order."""

    parent: int
    q: tuple[int, ...]
    kv: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A paired cut of a parent."""

    parent: Parent
    layers: tuple[LayerPlan, ...]
    dtype: str


@st.composite
def parents(draw: st.DrawFn, *, bias: bool | None = None) -> Parent:
    """Parents of every ratio; never as many KV heads as query heads in a group."""
    n_kv, group = draw(st.sampled_from([(3, 4), (4, 7), (2, 4), (5, 1), (1, 6), (3, 8), (6, 2), (7, 3)]))
    return Parent(
        n_kv * group,
        n_kv,
        draw(st.sampled_from([4, 6, 8])),
        draw(st.sampled_from([24, 40])),
        draw(st.integers(5, 24)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(DTYPES)),
        draw(st.booleans()) if bias is None else bias,
        draw(st.integers(0, 1 << 30)),
    )


@st.composite
def plans(draw: st.DrawFn, *, bias: bool | None = None) -> Plan:
    """Paired cuts: whole groups, query heads inside groups, both, in any order; channels; layers; a cast."""
    parent = draw(parents(bias=bias))
    kept = draw(st.lists(st.integers(0, parent.n_layers - 1), min_size=1, max_size=parent.n_layers, unique=True))
    layers = []
    for index in sorted(kept):
        kv = tuple(draw(st.permutations(range(parent.n_kv_heads))))[: draw(st.integers(1, parent.n_kv_heads))]
        per_group = draw(st.integers(1, parent.group))
        q: list[int] = []
        for head in kv:
            inside = draw(st.permutations(range(head * parent.group, (head + 1) * parent.group)))
            q += inside[:per_group]
        channels = draw(st.permutations(range(parent.intermediate_size)))
        layers.append(LayerPlan(index, tuple(q), kv, tuple(channels[: draw(st.integers(1, len(channels)))])))
    return Plan(parent, tuple(layers), draw(st.sampled_from([parent.dtype, *DTYPES])))


def cut(parent: Sketch, plan: Plan, **wrong: Sequence[int]) -> Sketch:
    """The child of a plan. ``wrong``: what every layer keeps instead (``v``, ``o``, ``q_bias``, ``up``, ``down``)."""
    child = parent.copy()
    take_layers(child, [layer.parent for layer in plan.layers])
    heads = {key: value for key, value in wrong.items() if key not in ("up", "down")}
    channels = {key: value for key, value in wrong.items() if key in ("up", "down")}
    for index, layer in enumerate(plan.layers):
        take_heads(child, index, q=layer.q, kv=layer.kv, **heads)
        take_channels(child, index, gate=layer.channels, **channels)
    return in_dtype(child, plan.dtype)


def in_dtype(sketch: Sketch, dtype: str) -> Sketch:
    """The sketch with every tensor cast."""
    made = sketch.copy()
    made.tensors = {
        name: tensor(t.shape, dtype, cast(t.dense(), t.storage.dtype, dtype), parameter=t.parameter)
        for name, t in sketch.tensors.items()
    }
    made.config["torch_dtype"] = dtype
    return made


def trace(child: Sketch, parent: Sketch, folder: Path, *, container: str = "module") -> Lineage:
    """What the tracer says of two sketches that were written to files."""
    folder.mkdir(parents=True, exist_ok=True)
    if container == "module":
        path = child.write_module(folder / "child.bin")
    elif container == "legacy":
        path = child.write_legacy(folder / "child.bin")
    else:
        path = child.write_folder(folder / "child")
    sides = []
    for place in (path, parent.write_folder(folder / "parent")):
        checkpoint = open_checkpoint(place)
        sides += [
            checkpoint,
            measure(checkpoint, head_dim=parent.head_dim, family="qwen2" if _biased(parent) else "llama"),
        ]
    return trace_lineage(*sides)


def _biased(sketch: Sketch) -> bool:
    return sketch.config["model_type"] == "qwen2"
