"""What the user's stack raises first on one attention block: loading it, or its forward pass over four tokens.

The texts are those of torch 2.13 with transformers 4.33, 4.36, 4.40 and 5.23, measured on broken models of each.
"""

from __future__ import annotations

from gqacheck.checkpoint import Container, ModuleInfo
from gqacheck.geometry.config import config_layer_value
from gqacheck.geometry.facts import Attention, Layer, Projection, Subject
from gqacheck.rules.heads import divide_evenly, q_width, whole_number
from gqacheck.rules.layouts import kv_heads_attribute, q_heads_attribute, reads_head_counts, reshapes_to_hidden
from gqacheck.rules.predict import refused

TOKENS = 4
"""Tokens in the predicted texts: one sequence of four."""


def view_error(heads: int, head_dim: int, rows: int) -> str:
    """What ``view(1, 4, heads, head_dim)`` of a projection with ``rows`` rows raises; ``heads`` -1 where it is free."""
    return f"shape '[1, {TOKENS}, {heads}, {head_dim}]' is invalid for input of size {TOKENS * rows}"


def reshape_error(hidden_size: int, width: int) -> str:
    """What the reshape of ``width`` attention outputs to ``hidden_size`` raises."""
    return f"shape '[1, {TOKENS}, {hidden_size}]' is invalid for input of size {TOKENS * width}"


def product_error(inputs: int, rows: int, columns: int) -> str:
    """What a Linear (weight ``rows`` x ``columns``) raises when it is handed ``inputs`` features."""
    return f"mat1 and mat2 shapes cannot be multiplied ({TOKENS}x{inputs} and {columns}x{rows})"


def size_error(a: int, b: int, dimension: int) -> str:
    """What an elementwise operation on sizes ``a`` and ``b`` raises."""
    return f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton dimension {dimension}"


HEADS_MUST_DIVIDE = "Number of heads in key and value must divide the number of heads in …"
"""torch 2.13 ends its sentence there."""
PADDED = "sdpa, the default, raises nothing until a batch is padded: its heads read the wrong keys and values"


def attention_raises(subject: Subject, layer: Layer) -> str:
    """What loading or running this layer's attention raises, in words; "" when that cannot be told."""
    attention = layer.attention
    if subject.container is not Container.MODULE:
        text = _refused_at_load(subject, layer)
        if text:
            return text
    if attention.fused is not None:
        return "q, k and v are cut out of the fused tensor at the wrong rows, or the forward pass raises a shape error"
    eager, sdpa = _first_error(subject, layer, "eager"), _first_error(subject, layer, "sdpa")
    if eager is None:
        return ""
    if eager == sdpa:
        return f"the forward pass raises `{eager}`{_for_tokens(eager)}"
    if sdpa is None:
        return f"eager attention raises `{eager}`; {PADDED}"
    return f"eager attention raises `{eager}`, sdpa `{sdpa}`"


def _for_tokens(text: str) -> str:
    return f" (for {TOKENS} tokens)" if f" {TOKENS}, " in text or f"({TOKENS}x" in text else ""


def _refused_at_load(subject: Subject, layer: Layer) -> str:
    """What the first projection raises whose stored shape is not the one that the config's numbers build."""
    attention, config = layer.attention, subject.geometry.config
    heads = config_layer_value(config, "num_attention_heads", layer.index)
    kv_heads = config_layer_value(config, "num_key_value_heads", layer.index)
    if not heads or not kv_heads or attention.head_dim is None or subject.checkpoint.own_code:
        return ""
    size, unit = attention.head_dim.value, attention.q_unit or attention.head_dim.value
    if attention.fused is not None:
        pairs: tuple[tuple[Projection | None, int, bool], ...] = (
            (attention.fused, (heads + 2 * kv_heads) * size, True),
            (attention.o, heads * size, False),
        )
    else:
        pairs = (
            (attention.q, heads * unit, True),
            (attention.k, kv_heads * size, True),
            (attention.v, kv_heads * size, True),
            (attention.o, heads * size, False),
        )
    for projection, built, by_rows in pairs:
        if projection is None:
            continue
        stored = (projection.rows, projection.columns)
        wanted = (built, projection.columns) if by_rows else (projection.rows, built)
        if stored != wanted:
            return refused(subject, projection.tensor.removeprefix(f"{layer.path}."), stored, wanted)
    return ""


def _first_error(subject: Subject, layer: Layer, backend: str) -> str | None:
    """The first thing that raises, in the order of the forward pass; None when nothing does."""
    attention = layer.attention
    hidden = subject.geometry.hidden_size
    projections = [p for p in (attention.q, attention.k, attention.v) if p is not None]
    for projection in projections:
        if hidden is not None and projection.columns != hidden.value:
            return product_error(hidden.value, projection.rows, projection.columns)
    if attention.head_dim is None:
        return None
    size = attention.head_dim.value
    error = _view(attention, size)
    if error is not None:
        return error
    n_q, n_k, n_v = (divide_evenly(p.rows, u) if p else None for p, u in _units(attention))
    if n_q is None or n_k is None or n_v is None:
        return None
    error = _matching(subject, layer, n_q, n_k, n_v, backend)
    if error is not None:
        return error
    width = q_width(attention)
    stale = whole_number(attention.module, "hidden_size")
    if width is None or attention.o is None:
        return None
    module = attention.module
    if module is not None and stale not in (None, width) and reshapes_to_hidden(subject.checkpoint, module):
        return reshape_error(stale or 0, width)
    if attention.o.columns != width:
        return product_error(width, attention.o.rows, attention.o.columns)
    if hidden is not None and attention.o.rows != hidden.value:
        return size_error(hidden.value, attention.o.rows, 2)
    return None


def _units(attention: Attention) -> tuple[tuple[Projection | None, int | None], ...]:
    size = attention.head_dim.value if attention.head_dim else None
    return (attention.q, attention.q_unit), (attention.k, size), (attention.v, size)


def _view(attention: Attention, size: int) -> str | None:
    for projection, unit in _units(attention):
        if projection is None or unit is None:
            continue
        heads = _stated_heads(attention.module, projection.role)
        if heads is not None:
            if heads * unit != projection.rows:
                return view_error(heads, unit, projection.rows)
        elif projection.rows % unit:
            return view_error(-1, unit, projection.rows)
    return None


def _stated_heads(module: ModuleInfo | None, role: str) -> int | None:
    """The count that the class views this projection with; None where it leaves it to the rows."""
    if module is None or not reads_head_counts(module):
        return None
    key = q_heads_attribute(module) if role == "q" else kv_heads_attribute(module)
    return whole_number(module, key) if key is not None else None


def _matching(subject: Subject, layer: Layer, n_q: int, n_k: int, n_v: int, backend: str) -> str | None:
    """Repeating the KV heads and multiplying them with the query heads."""
    if not n_k or not n_v:
        return size_error(n_q, 0, 1) if backend == "eager" else None
    module = layer.attention.module
    groups = whole_number(module, "num_key_value_groups")
    if groups is None:
        config = subject.geometry.config
        heads = config_layer_value(config, "num_attention_heads", layer.index) or n_q
        kv_heads = config_layer_value(config, "num_key_value_heads", layer.index) or n_k
        groups = heads // kv_heads if module is None and heads > 0 and kv_heads > 0 else n_q // n_k
    wrong = next((n for n in (n_k, n_v) if n * groups != n_q), None)
    if wrong is None:
        return None
    if backend == "sdpa" and groups != 1 and (module is None or not reads_head_counts(module)):
        if n_q % n_k or n_q % n_v:
            return HEADS_MUST_DIVIDE
        return None
    return size_error(n_q, wrong * groups, 1)
