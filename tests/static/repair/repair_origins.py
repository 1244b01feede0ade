"""Layers and lineages by hand: which parent heads and channels stand where, without a file."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from gqacheck.geometry.facts import Attention, Geometry, Layer, Measured, Mlp, Projection
from gqacheck.geometry.families import family_by_name
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, MlpOrigin, Origin, VectorOrigin

HEAD_DIM, HIDDEN, WIDTH = 8, 96, 40


def heads(role: str, names: Sequence[int | None] | None, n_parent: int, state: Any = "exact") -> Heads | None:
    """One projection whose positions hold these parent heads; None in the list matches nothing."""
    if names is None:
        return None
    origins = tuple(Origin("unmatched") if n is None else Origin("exact", (n,)) for n in names)
    return Heads(role, state, n_parent, origins, f"model.layers.0.self_attn.{role}_proj.weight")


def channels(role: str, names: Sequence[int] | None, state: Any = "exact") -> Channels | None:
    return None if names is None else Channels(role, state, WIDTH, array("i", names))


def layer_origin(
    q: Sequence[int | None] | None,
    k: Sequence[int | None] | None,
    v: Sequence[int | None] | None = None,
    o: Sequence[int | None] | None = None,
    *,
    parent: tuple[int, int] = (12, 3),
    index: int = 0,
    o_state: Any = "exact",
    gate: Sequence[int] | None = None,
    up: Sequence[int] | None = None,
    down: Sequence[int] | None = None,
    down_state: Any = "exact",
    vectors: Sequence[VectorOrigin] = (),
) -> LayerOrigin:
    """A layer of a child; v and o default to what k and q hold."""
    n_q, n_kv = len(q or ()), len(k or ())
    mlps = ()
    if gate is not None or up is not None or down is not None:
        mlps = (MlpOrigin(channels("gate", gate), channels("up", up), channels("down", down, down_state)),)
    return LayerOrigin(
        index,
        index,
        n_q,
        n_kv,
        *parent,
        heads("q", q, parent[0]),
        heads("k", k, parent[1]),
        heads("v", k if v is None else v, parent[1]),
        heads("o", q if o is None else o, parent[0], o_state),
        mlps,
        tuple(vectors),
    )


def projection(role: str, rows: int, columns: int, bias: int | None = None) -> Projection:
    block = "self_attn" if role in "qkvo" else "mlp"
    stem = f"model.layers.0.{block}.{role}_proj"
    return Projection(
        role, f"{role}_proj", f"{stem}.weight", rows, columns, "float32", bias, f"{stem}.bias" if bias else None
    )


def layer(n_q: int, n_kv: int, *, bias: bool = False, width: int = WIDTH, **odd: Any) -> Layer:
    """A layer of these counts; ``odd`` replaces single projections (None leaves one out)."""
    d = HEAD_DIM
    made = {
        "q": projection("q", n_q * d, HIDDEN, n_q * d if bias else None),
        "k": projection("k", n_kv * d, HIDDEN, n_kv * d if bias else None),
        "v": projection("v", n_kv * d, HIDDEN, n_kv * d if bias else None),
        "o": projection("o", HIDDEN, n_q * d),
        "gate": projection("gate", width, HIDDEN),
        "up": projection("up", width, HIDDEN),
        "down": projection("down", HIDDEN, width),
    } | odd
    attention = Attention(
        "full",
        "model.layers.0.self_attn",
        **{role: made[role] for role in "qkvo"},
        head_dim=Measured(d, "config.json head_dim"),
        q_unit=d,
    )
    mlp = Mlp("gated", "model.layers.0.mlp", made["gate"], made["up"], made["down"])
    return Layer(0, "model.layers.0", attention, mlp)


def geometry(*layers: Layer, family: str = "llama") -> Geometry:
    known = family_by_name(family)
    assert known is not None
    return Geometry(known, "config model_type", "", "model.layers", layers)


def lineage(*layers: LayerOrigin, relation: Any = "child", reason: str = "") -> Lineage:
    return Lineage(relation, reason, layers, len(layers))


def pairs_right(wanted: Sequence[int], kept: Sequence[int], parent_group: int) -> bool:
    """Whether every query head reads the KV head that it was trained with."""
    group = len(wanted) // len(kept)
    return all(head // parent_group == kept[position // group] for position, head in enumerate(wanted))


def result_of(take: Any, names: Sequence[int | None]) -> list[int | None]:
    """The parent heads that stand there after ``take`` is carried out on a projection that holds ``names``."""
    return [names[position] if position != NOWHERE else take.parent[place] for place, position in enumerate(take.child)]
