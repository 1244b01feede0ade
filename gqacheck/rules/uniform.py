"""GQA405: layers that differ in shape, and what can load them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gqacheck.checkpoint import Container, Plain
from gqacheck.geometry.config import LAYER_LISTS, config_layer_value, config_number, has_layer_list
from gqacheck.geometry.facts import Layer, Subject
from gqacheck.rules.blocks import EXPERTS_ALIKE, blocks, inside, weight_refused
from gqacheck.rules.built import built_head_dim, built_heads, built_width
from gqacheck.rules.config import trusted_head_dim
from gqacheck.rules.heads import counted
from gqacheck.rules.predict import RANDOM, refused
from gqacheck.rules.rule import Quantity, Severity, Violation
from gqacheck.rules.spelling import config_name

_MOST_SHAPES = 4
_OWN_SIZES = (
    "num_query_heads",
    "ffn_multipliers",
    "block_configs",
    "num_attention_heads_per_layer",
    "per_layer_config",
)
"""Config keys by which families that are made of unequal layers say so (OpenELM, Nemotron-NAS, Laguna, Gemma 4)."""
_Shape = tuple[object, ...]


def non_uniform(subject: Subject) -> Iterator[Violation]:
    """The layers differ in shape, and a stock class builds all of them alike.

    What it checks
        Query heads, KV heads and head_dim of all layers with softmax attention; MLP width of all dense layers; MLP
        width and number of experts of all expert layers. Layers that differ by kind (linear attention, dense and
        expert layers) are compared with their own kind only. Silent when the config describes every layer: by lists
        under gqacheck_layers that match the tensors (a folder also needs an auto_map to read them), or by lists of
        the family's own; a folder that brings its own modelling code is believed.

    Why it matters
        LLM-Pruner cuts layers 4 to 28 and leaves the rest, global pruning cuts every layer differently. Such a model
        runs where its modules are pickled, and nowhere else: config.json has one number for all layers. transformers'
        `per_layer_config` cannot say it today: LlamaConfig raises, Qwen2, Qwen3 and Mistral raise when built.

    What you would see
        Folder: `MISMATCH … Reinit due to size mismatch` for every layer that is not as the config says; with
        ignore_mismatched_sizes=True these layers are random, silently. vLLM: `Attempted to load weight (…) into
        parameter (…)`.

    Fix
        Cut all layers alike; or keep the whole-module pickle; or load with gqacheck.load_model, which builds each layer
        at its own size; or write the sizes as lists under gqacheck_layers, with a modelling class named in auto_map.

    Known misses
        Own modelling code is not read: whether it builds these shapes is not known.

    Source
        LLM-Pruner's block-wise mode and per_layer_config of transformers 5.23, both tried out.
    """
    found = list(_odd_layers(subject))
    if not found or _described(subject):
        return
    shapes = Counter(_describe(layer) for layer in subject.geometry.layers)
    listed = [f"{counted(count, 'layer')} with {shape}" for shape, count in shapes.most_common(_MOST_SHAPES)]
    more = f" and {len(shapes) - _MOST_SHAPES} more shapes" if len(shapes) > _MOST_SHAPES else ""
    unread = subject.container is Container.FOLDER and _lists_match(subject)
    message = f"the layers come in {len(shapes)} shapes: {', '.join(listed)}{more}"
    if unread:
        message += f"; {config_name(subject)} lists them under {LAYER_LISTS}, but names no auto_map to read that"
    consequence = _consequence(subject)
    for layer in found:
        yield Violation(
            message=message,
            layer=layer.index,
            expected=Quantity(1, "shapes"),
            actual=Quantity(len(shapes), "shapes"),
            source="tensor shapes",
            consequence=consequence,
            fix=_fix(subject),
            severity=_severity(subject),
        )


def _severity(subject: Subject) -> Severity:
    if subject.container is Container.FOLDER:
        return Severity.ERROR
    return Severity.NOTE if subject.container is Container.MODULE else Severity.WARNING


def _fix(subject: Subject) -> str:
    load = "load it with gqacheck.load_model, which builds each layer at its own size"
    if subject.container is Container.MODULE:
        return f"keep the whole-module pickle, or {load}; for a folder cut all layers alike"
    return f"{load}; for stock loaders cut all layers alike, or list the sizes under {LAYER_LISTS} with an auto_map"


def _consequence(subject: Subject) -> str:
    if subject.container is Container.MODULE:
        return (
            "the pickle runs from its modules; saved with save_pretrained it can no longer be loaded by the stock class"
        )
    for layer in subject.geometry.layers:
        text = _refusal(subject, layer)
        if text is not None:
            return text
    text = "the stock class builds all layers alike, so loading reports size mismatches and raises"
    return text if subject.container is Container.STATE_DICT else f"{text}; {RANDOM}"


def _refusal(subject: Subject, layer: Layer) -> str | None:
    """The error of the first weight of ``layer`` that is not as the config's numbers make it."""
    attention = layer.attention
    q, head_dim = attention.q, built_head_dim(subject)
    heads = built_heads(subject, "num_attention_heads", layer.index)
    if q is not None and not q.derived and heads and head_dim:
        rows = heads * head_dim * (2 if subject.geometry.family.gated_q else 1)
        if rows != q.rows:
            return refused(subject, inside(layer, q.tensor), (q.rows, q.columns), (rows, q.columns))
    for block in blocks(layer.mlp):
        width = built_width(subject, block, layer.index)
        if block.up is None or width in (None, block.up.rows):
            continue
        if isinstance(block.expert, int) and subject.container is Container.FOLDER:
            return EXPERTS_ALIKE
        return weight_refused(subject, layer, block, block.up, rows=width)
    return None


def _odd_layers(subject: Subject) -> Iterator[Layer]:
    """The layers that differ from what the config says, or, if none is as it says, from most of their kind."""
    layers = subject.geometry.layers
    odd: set[int] = set()
    for shape_of in (_attention_shape, _known_head_dim, _dense_shape, _expert_shape):
        odd |= _outsiders(subject, layers, shape_of)
    return (layer for layer in layers if layer.index in odd)


def _outsiders(subject: Subject, layers: Sequence[Layer], shape_of: Callable[[Layer], _Shape | None]) -> set[int]:
    shapes = [(layer, shape) for layer in layers if (shape := shape_of(layer)) is not None]
    counts = Counter(shape for _, shape in shapes)
    if len(counts) <= 1:
        return set()
    as_configured = Counter(shape for layer, shape in shapes if _as_configured(subject, layer))
    usual = (as_configured or counts).most_common(1)[0][0]
    return {layer.index for layer, shape in shapes if shape != usual}


def _as_configured(subject: Subject, layer: Layer) -> bool:
    """Whether the layer has the heads and the width that the config's numbers (not its lists) say."""
    attention, config = layer.attention, subject.geometry.config
    stated = config_number(config, "num_attention_heads"), config_number(config, "num_key_value_heads")
    if attention.kind == "full" and None not in stated and (attention.n_q_heads, attention.n_kv_heads) != stated:
        return False
    first = next(blocks(layer.mlp), None)
    width = built_width(subject, first, layer.index) if first is not None else None
    return width is None or first is None or first.up is None or first.up.rows == width


def _attention_shape(layer: Layer) -> _Shape | None:
    attention = layer.attention
    if attention.kind != "full":
        return None
    return tuple(projection.rows if projection else None for projection in (attention.q, attention.k))


def _known_head_dim(layer: Layer) -> _Shape | None:
    head_dim = trusted_head_dim(layer.attention) if layer.attention.kind == "full" else None
    return None if head_dim is None else (head_dim,)


def _dense_shape(layer: Layer) -> _Shape | None:
    return (layer.mlp.intermediate_size,) if layer.mlp.kind in ("gated", "plain") else None


def _expert_shape(layer: Layer) -> _Shape | None:
    if layer.mlp.kind != "moe":
        return None
    return layer.mlp.intermediate_size, layer.mlp.n_experts_stored


def _describe(layer: Layer) -> str:
    """``24:6 heads of 128 and 14336 MLP channels``."""
    attention, mlp = layer.attention, layer.mlp
    words = []
    if attention.kind == "full":
        q, kv, head_dim = attention.n_q_heads, attention.n_kv_heads, trusted_head_dim(attention)
        if q is not None and kv is not None and head_dim is not None:
            words.append(f"{q}:{kv} heads of {head_dim}")
        else:
            rows = [str(projection.rows) if projection else "no" for projection in (attention.q, attention.k)]
            words.append(f"{rows[0]} query and {rows[1]} key rows")
    elif attention.kind != "mla":
        words.append(f"{attention.kind} attention")
    if mlp.kind == "moe":
        words.append(f"{mlp.n_experts_stored} experts of {mlp.intermediate_size} channels")
    elif mlp.intermediate_size is not None:
        words.append(f"{mlp.intermediate_size} MLP channels")
    else:
        words.append("no MLP")
    return " and ".join(words)


def _described(subject: Subject) -> bool:
    """Whether config or own code account for the differences."""
    if subject.checkpoint.own_code:
        return True
    if _lists_match(subject):
        own_lists = not isinstance(subject.geometry.config.get(LAYER_LISTS), Mapping)
        return subject.container is not Container.FOLDER or own_lists or _names_a_class(subject)
    return subject.geometry.family.generic and _own_lists_explain(subject)


def _names_a_class(subject: Subject) -> bool:
    config = subject.checkpoint.config
    auto_map = config.values.get("auto_map") if config else None
    return isinstance(auto_map, Mapping) and any(key.startswith("AutoModel") for key in auto_map)


def _lists_match(subject: Subject) -> bool:
    """Whether every size that varies has a per-layer list that says what is measured, in every layer."""
    layers, config = subject.geometry.layers, subject.geometry.config
    sizes: tuple[tuple[str, Callable[[Layer], int | None]], ...] = (
        ("num_attention_heads", lambda layer: layer.attention.n_q_heads),
        ("num_key_value_heads", lambda layer: layer.attention.n_kv_heads),
        ("intermediate_size", lambda layer: layer.mlp.intermediate_size),
    )
    listed = False
    for key, measure in sizes:
        if key == "intermediate_size":
            relevant = [layer for layer in layers if layer.mlp.kind != "moe"]
        else:
            relevant = [layer for layer in layers if layer.attention.kind == "full"]
        values = {layer.index: measure(layer) for layer in relevant}
        if len(set(values.values())) <= 1:
            continue
        if not has_layer_list(config, key):
            return False
        if any(config_layer_value(config, key, index) != value for index, value in values.items()):
            return False
        listed = True
    return listed


def _own_lists_explain(subject: Subject) -> bool:
    """Whether an unknown family's own per-layer lists tell which layer has which shape (Gemma 4's layer_types)."""
    layers, config = subject.geometry.layers, subject.geometry.config
    if any(isinstance(config.get(key), tuple | list | Mapping) for key in _OWN_SIZES):
        return True
    rows = [value for value in config.values() if isinstance(value, tuple | list) and len(value) == len(layers)]
    kinds: dict[tuple[str, ...], set[_Shape]] = {}
    for position, layer in enumerate(layers):
        kind = tuple(repr(row[position])[:80] for row in rows if _is_word(row[position]))
        shape = (_attention_shape(layer), _known_head_dim(layer), _dense_shape(layer), _expert_shape(layer))
        kinds.setdefault(kind, set()).add(shape)
    return 1 < len(kinds) < len(layers) and all(len(shapes) == 1 for shapes in kinds.values())


def _is_word(value: Plain) -> bool:
    return isinstance(value, str | int | float)
