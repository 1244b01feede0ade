"""Layers whose heads can be counted, what a rule needs for that, and counts in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gqacheck.checkpoint import ModuleInfo
from gqacheck.geometry.config import LARGEST
from gqacheck.geometry.facts import Attention, Layer, Measured, Projection, Subject
from gqacheck.rules.needs import needs_dense_weights


def full_layers(subject: Subject) -> Iterator[tuple[Layer, Attention]]:
    """The layers with softmax attention, the only kind whose heads can be counted."""
    for layer in subject.geometry.layers:
        if layer.attention.kind == "full":
            yield layer, layer.attention


def needs_attention(subject: Subject) -> tuple[str, str] | None:
    """Dense weights, and a layer with softmax attention."""
    packed = needs_dense_weights(subject)
    if packed is not None:
        return packed
    kinds = {layer.attention.kind for layer in subject.geometry.layers}
    if "full" in kinds or "dropped" in kinds:
        return None
    if "mla" in kinds:
        return "softmax-attention", "multi-head latent attention has no KV heads to count"
    return "softmax-attention", "no layer stores softmax attention, so there are no heads to count"


def needs_heads(subject: Subject) -> tuple[str, str] | None:
    """What `needs_attention` wants, and a head_dim in at least one layer."""
    reason = needs_attention(subject)
    if reason is not None:
        return reason
    if any(attention.head_dim is not None for _, attention in full_layers(subject)):
        return None
    return "head-dim", "nothing says how many rows one head has; give --head-dim N or --config config.json"


def whole_number(module: ModuleInfo | None, key: str) -> int | None:
    """A whole number among a module's attributes; None when it is absent, anything else, or too large for any size."""
    value = module.attributes.get(key) if module is not None else None
    return value if type(value) is int and -LARGEST < value < LARGEST else None


def divide_evenly(rows: int | None, unit: int | None) -> int | None:
    """``rows / unit`` when nothing is left over."""
    if rows is None or not unit or rows % unit:
        return None
    return rows // unit


def q_width(attention: Attention) -> int | None:
    """Rows of q without the gate that some families keep beside it: what o_proj is handed."""
    if attention.q is None:
        return None
    rows = attention.q.rows
    if attention.head_dim is not None and attention.q_unit == 2 * attention.head_dim.value:
        return rows // 2
    return rows


def rows_in_heads(rows: int, unit: int | None, noun: str) -> str:
    """``72 rows = 9 query heads of 8``, ``90 rows = 11 query heads of 8 and 2 rows``; rows alone without a unit."""
    return f"{rows} rows{_in_heads(rows, unit, noun, 'row')}"


def columns_in_heads(columns: int, unit: int | None, noun: str) -> str:
    """The same for columns."""
    return f"{columns} columns{_in_heads(columns, unit, noun, 'column')}"


def _in_heads(width: int, unit: int | None, noun: str, element: str) -> str:
    if not unit:
        return ""
    heads, over = divmod(width, unit)
    rest = f" and {counted(over, element)}" if over else ""
    return f" = {counted(heads, noun)} of {unit}{rest}"


def counted(number: int, noun: str) -> str:
    """``1 KV head``, ``3 KV heads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def by_source(head_dim: Measured | None) -> str:
    """`` (head_dim 8: config.json head_dim)``; "" when nothing says."""
    return f" (head_dim {head_dim.value}: {head_dim.source})" if head_dim is not None else ""


def is_guess(head_dim: Measured | None) -> bool:
    """Whether head_dim was merely guessed from the rows; an accusation built on it is a warning at most."""
    return head_dim is not None and head_dim.source.startswith("guessed")


def called(projection: Projection) -> str:
    """``q_proj``, or ``the q part of qkv_proj (split by o_proj columns)``."""
    if projection.derived is None:
        return projection.name
    return f"the {projection.role} part of {projection.name} (split by {projection.derived})"


def legal_counts(n_q_heads: int, n_kv_heads: int) -> tuple[int, ...]:
    """The multiples of ``n_kv_heads`` on both sides of ``n_q_heads``; zero is none.

    >>> legal_counts(31, 7), legal_counts(2, 3)
    ((28, 35), (3,))
    """
    below = n_q_heads // n_kv_heads * n_kv_heads
    return tuple(count for count in (below, below + n_kv_heads) if count)


def choice(numbers: tuple[int, ...]) -> str:
    """``28 or 35``."""
    return " or ".join(map(str, numbers))


def listed(names: Sequence[str]) -> str:
    """``q_proj, k_proj and v_proj``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
