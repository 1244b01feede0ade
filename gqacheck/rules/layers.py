"""GQA401, 402 and 411: which layers there are, and whether the config's per-layer lists have as many entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gqacheck.checkpoint import Container, Plain
from gqacheck.geometry.config import LAYER_LISTS, config_number, text_config
from gqacheck.geometry.facts import Subject
from gqacheck.rules.heads import counted
from gqacheck.rules.lost import layer_indices
from gqacheck.rules.needs import needs_config
from gqacheck.rules.predict import absent, left_over, ranges
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container
from gqacheck.rules.spelling import config_name, spelled
from gqacheck.text import printable, printable_list

PER_LAYER = (
    "layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta",
    "attn_type_list", "indexer_types", "activation_sparsity_pattern", "kv_source_layers",
    "hybrid_override_pattern", "block_configs", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "num_attention_heads_per_layer", "num_key_value_heads_per_layer", "num_query_heads", "num_kv_heads",
    "ffn_multipliers",
)  # fmt: skip
"""Config keys that hold one entry per decoder layer, when they hold a list."""

_CHECKED_BY_TRANSFORMERS = ("layer_types", "mlp_layer_types")
_MOST_LISTS = 32


def needs_a_layer_count(subject: Subject) -> tuple[str, str] | None:
    """Anything to compare the number of layers with: a config, a base, or the caller's word."""
    if subject.expect.layers is not None or subject.base is not None:
        return None
    return needs_config(subject)


def layer_count(subject: Subject) -> Iterator[Violation]:
    """The number of layers is not what the caller, or the config, says.

    What it checks
        Layers stored against --expect-layers and against the config's num_hidden_layers. Layers that only predict
        further tokens (MTP) are not counted. When indices are missing and that alone explains the difference,
        GQA402 says so and this rule is silent. Fewer layers than the base is a note: removing whole layers is a
        legal way to prune.

    Why it matters
        Scripts that count on 32 layers meet a Qwen2.5-7B with 28 (`layer_end=30`), and pruners that remove layers
        forget the config.

    What you would see
        Config above the file: from_pretrained prints `MISSING … newly initialized` and runs with random layers. Config
        below the file: `UNEXPECTED`, and the last layers are dropped. Both without an error. A whole-module pickle
        under transformers 5 runs only the first num_hidden_layers of its layers. A script: `IndexError: index 28 is
        out of range`.

    Fix
        Set num_hidden_layers to the number of layers stored; per-layer lists (layer_types) need the same cut.

    Known misses
        The right number of layers in the wrong order (GQA607).

    Source
        Loading reports and `self.layers[: self.config.num_hidden_layers]` of transformers 5.23, measured.
    """
    geometry = subject.geometry
    indices = layer_indices(subject)
    n = len(indices)
    last = indices[-1] + 1 if indices else 0
    explained_by_gaps = last if n != last else None
    expected = subject.expect.layers
    if expected is not None and expected not in (n, explained_by_gaps):
        yield Violation(
            message=f"the file holds {counted(n, 'layer')}, --expect-layers says {expected}",
            expected=Quantity(expected, "layers"),
            actual=Quantity(n, "layers"),
            source="tensor names, --expect-layers",
            consequence=f"IndexError: index {n} is out of range, in a script that goes over {expected} layers"
            if expected > n
            else "a script that goes over the expected layers leaves the rest alone",
            fix="take the checkpoint that was meant, or correct the number",
        )
    stated = config_number(geometry.config, "num_hidden_layers")
    if stated is not None and stated not in (n, explained_by_gaps):
        key = spelled(subject, "num_hidden_layers")
        yield Violation(
            message=f"the file holds {counted(n, 'layer')}, but {config_name(subject)} {key} is {stated}",
            expected=Quantity(stated, "layers"),
            actual=Quantity(n, "layers"),
            source=f"tensor names, {config_name(subject)} {key}",
            consequence=_count_consequence(subject, n, stated),
            fix=f"set {key} to {n}",
            severity=by_container(subject, folder=Severity.ERROR, module=Severity.WARNING),
        )
    if subject.base is not None and subject.base.geometry.n_layers > n:
        yield Violation(
            message=f"the file holds {counted(n, 'layer')}, its base {subject.base.geometry.n_layers}",
            expected=Quantity(subject.base.geometry.n_layers, "layers"),
            actual=Quantity(n, "layers"),
            source="tensor names, base",
            consequence="none by itself: removing whole layers is a legal way to prune",
            severity=Severity.NOTE,
        )


def _count_consequence(subject: Subject, n: int, stated: int) -> str:
    if subject.container is Container.MODULE:
        if stated < n:
            return f"transformers 5 runs only the first {counted(max(stated, 0), 'layer')}, without a word"
        return "the pickle runs from its modules; saved and loaded as a folder, it gains layers of random weights"
    if stated < n:
        return left_over(subject, named(range(max(stated, 0), n)))
    return absent(subject, named(range(n, min(stated, n + 4096))))


def named(indices: Sequence[int]) -> str:
    """``layer 3``, ``layers 2-5``."""
    return f"layer {indices[0]}" if len(indices) == 1 else f"layers {ranges(indices, 6)}"


def layer_gap(subject: Subject) -> Iterator[Violation]:
    """The layers are not numbered 0, 1, 2, … without a gap.

    What it checks
        The indices in the tensor names: they start at 0 and none is left out. Layers that lie in a shard that is
        missing (GQA014) count as present.

    Why it matters
        Removing a layer from a state dict leaves a hole; the next layer must take its number. Loaders go by the
        number, so every layer behind the hole would be missed, and the KV cache goes by it too.

    What you would see
        from_pretrained prints `MISSING model.layers.1.… newly initialized` and runs with random weights in the hole,
        without an error. `model.layers[1]` of such a pickle: `KeyError: '1'`.

    Fix
        Renumber the layers that follow the hole, in names and in layer_idx, or restore the missing one.

    Known misses
        Layers that are numbered without gaps but stand in another order than in the parent (GQA607).

    Source
        torch.nn.ModuleList names its children by position; loading report of transformers 5.23, measured.
    """
    indices = layer_indices(subject)
    n = len(indices)
    if not indices or indices == list(range(n)):
        return
    gaps = [(low + 1, high - 1) for low, high in zip((-1, *indices), indices, strict=False) if high - low > 1]
    holes = printable_list((str(low) if low == high else f"{low}-{high}" for low, high in gaps), 6)
    missing = f"{holes} {'is' if len(gaps) == 1 and gaps[0][0] == gaps[0][1] else 'are'} missing"
    yield Violation(
        message=f"the {counted(n, 'layer')} are numbered {ranges(indices, 6)}, not {ranges(range(n))}: {missing}",
        expected=Quantity(n - 1, "last index"),
        actual=Quantity(indices[-1], "last index"),
        source="tensor names",
        consequence=_gap_consequence(subject, indices, gaps[0][0]),
        fix=f"renumber them to {ranges(range(n))} in the tensor names and in layer_idx, or restore what is missing",
    )


def _gap_consequence(subject: Subject, indices: list[int], first: int) -> str:
    if subject.container is Container.MODULE:
        return f"model.layers[{first}] raises KeyError: '{first}', and KV cache slots are never filled"
    built = config_number(subject.geometry.config, "num_hidden_layers")
    if built is None or not 0 < built <= indices[-1] + 1:
        built = len(indices)
    random = [index for index in range(min(built, 1 << 16)) if index not in set(indices)]
    dropped = [index for index in indices if index >= built]
    texts = [absent(subject, named(random))] if random else []
    if dropped:
        texts.append(left_over(subject, named(dropped)))
    return "; and ".join(texts)


def per_layer_list(subject: Subject) -> Iterator[Violation]:
    """A per-layer list of the config does not have one entry per layer.

    What it checks
        layer_types, mlp_layer_types, no_rope_layers and the other config keys that hold one entry per layer, and every
        list under gqacheck_layers, against the number of layers stored. Lists of layer numbers (mlp_only_layers) are
        not such lists.

    Why it matters
        Removing layers shortens num_hidden_layers by hand, and the lists are forgotten. A list that is too long also
        hands every layer behind the cut the type of another one (sliding or full attention).

    What you would see
        For layer_types `ValueError: num_hidden_layers (26) must be equal to the number of layer_types (28)`; other
        lists give an IndexError when too short, and nothing when too long.

    Fix
        Remove the entries of the layers that were removed, not simply the last ones.

    Known misses
        Lists of the right length with entries of other layers. Lists that transformers 5.23 does not know.

    Source
        `validate_layer_type` of transformers 5.23 (classes of 4.5x have the same check), measured.
    """
    n, source = len(layer_indices(subject)), config_name(subject)
    config = text_config(subject.checkpoint)[0]
    predictors = max(config_number(config, "num_nextn_predict_layers") or 0, 0)
    for name, length in _lists(config):
        if n <= length <= n + predictors:
            continue
        shown = printable(name, 80)
        yield Violation(
            message=f"{source} {shown} has {length} entries, but the file holds {counted(n, 'layer')}",
            expected=Quantity(n, "entries"),
            actual=Quantity(length, "entries"),
            source=f"tensor names, {source} {shown}",
            consequence=_list_consequence(subject, name, length, n),
            fix=f"give {shown} one entry per layer that is left: {n}",
        )


def _list_consequence(subject: Subject, name: str, length: int, n: int) -> str:
    if name in _CHECKED_BY_TRANSFORMERS:
        stated = config_number(subject.geometry.config, "num_hidden_layers")
        layers = n if stated is None or stated == length else stated
        error = f"ValueError: `num_hidden_layers` ({layers}) must be equal to the number of `{name}` ({length})"
        if subject.container is not Container.MODULE:
            return error
        return (
            f"the pickle may run, with the type of another layer behind a removed one; save_pretrained raises {error}"
        )
    if length < n:
        return "IndexError: list index out of range, in classes that read it"
    return "nothing raises; layers behind a removed one get the entry of another layer"


def _lists(config: Mapping[str, Plain]) -> Iterator[tuple[str, int]]:
    for key in PER_LAYER:
        value = config.get(key)
        if isinstance(value, tuple | list) or (key == "hybrid_override_pattern" and isinstance(value, str)):
            yield key, len(value)
    nested = config.get(LAYER_LISTS)
    if isinstance(nested, Mapping):
        for key in list(nested)[:_MOST_LISTS]:
            value = nested[key]
            if isinstance(value, tuple | list):
                yield f"{LAYER_LISTS}.{key}", len(value)
