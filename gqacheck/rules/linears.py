"""GQA201 and GQA202: what every Linear of a pickled module says of its own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gqacheck.checkpoint import ModuleInfo, TensorInfo
from gqacheck.geometry.facts import Subject
from gqacheck.rules.forward import product_error, size_error
from gqacheck.rules.heads import columns_in_heads, full_layers, rows_in_heads, whole_number
from gqacheck.rules.needs import needs_dense_weights
from gqacheck.rules.rule import Quantity, Violation
from gqacheck.text import printable

_LORA_RANK = 8
"""The rank in the predicted LoRA errors."""

_Units = Mapping[str, tuple[int | None, int | None, str]]


def needs_modules(subject: Subject) -> tuple[str, str] | None:
    """Modules with attributes: a whole-module pickle or a live model."""
    if not subject.checkpoint.modules:
        return "module", "only a whole-module pickle carries module attributes"
    return None


def needs_dense_modules(subject: Subject) -> tuple[str, str] | None:
    """Modules, and weights whose stored shape is their own."""
    return needs_modules(subject) or needs_dense_weights(subject)


def out_features_stale(subject: Subject) -> Iterator[Violation]:
    """A Linear says another out_features than its weight has rows.

    What it checks
        out_features of every module that has that attribute and a two-dimensional weight of its own: attention, MLP,
        experts, router, lm_head. Conv1D (whose weight lies the other way round) has no such attribute.

    Why it matters
        torch never reads out_features in a forward pass, so the cut model runs; everything that builds onto it does:
        LoRA, quantisers, exporters, parameter counts.

    What you would see
        PEFT sizes its matrices from it: `The size of tensor a (72) must match the size of tensor b (96) at
        non-singleton dimension 2` in the first step with LoRA on that module.

    Fix
        `module.out_features = module.weight.shape[0]` for every module that was cut, before torch.save.

    Known misses
        Modules that keep their width under another name.

    Source
        torch.nn.Linear.forward uses the weight alone; PEFT's error measured with peft 0.21.
    """
    units = _units_by_tensor(subject)
    for path, module, weight in _linears(subject):
        stated, rows = whole_number(module, "out_features"), weight.shape[0]
        if stated is None or stated == rows:
            continue
        layer, name = _place(subject, path)
        unit, _, noun = units.get(weight.name, (None, None, ""))
        yield Violation(
            message=(
                f"{name} says out_features={stated}{_as_heads(stated, unit, noun)}, "
                f"its weight has {rows_in_heads(rows, unit, noun)}"
            ),
            layer=layer,
            tensors=(weight.name,),
            expected=Quantity(rows, "out_features"),
            actual=Quantity(stated, "out_features"),
            source="module attributes",
            consequence=f"LoRA on it raises `{size_error(rows, stated, 2)}` in its first step",
            fix="set out_features to weight.shape[0] on every module that was cut, before torch.save",
        )


def in_features_stale(subject: Subject) -> Iterator[Violation]:
    """A Linear says another in_features than its weight has columns.

    What it checks
        in_features of every module that has that attribute and a two-dimensional weight of its own: attention, MLP,
        experts, router, lm_head.

    Why it matters
        torch never reads in_features in a forward pass, so the cut model runs; LoRA, quantisers and exporters build
        their own matrices from it.

    What you would see
        `mat1 and mat2 shapes cannot be multiplied (4x72 and 96x8)` in the first step with LoRA on that module.

    Fix
        `module.in_features = module.weight.shape[1]` for every module that was cut, before torch.save.

    Known misses
        Modules that keep their width under another name.

    Source
        torch.nn.Linear.forward uses the weight alone; PEFT's error measured with peft 0.21.
    """
    units = _units_by_tensor(subject)
    for path, module, weight in _linears(subject):
        stated, columns = whole_number(module, "in_features"), weight.shape[1]
        if stated is None or stated == columns:
            continue
        layer, name = _place(subject, path)
        _, unit, noun = units.get(weight.name, (None, None, ""))
        yield Violation(
            message=(
                f"{name} says in_features={stated}{_as_heads(stated, unit, noun)}, "
                f"its weight has {columns_in_heads(columns, unit, noun)}"
            ),
            layer=layer,
            tensors=(weight.name,),
            expected=Quantity(columns, "in_features"),
            actual=Quantity(stated, "in_features"),
            source="module attributes",
            consequence=(
                f"LoRA on it (r={_LORA_RANK}) raises `{product_error(columns, _LORA_RANK, stated)}` in its first step"
            ),
            fix="set in_features to weight.shape[1] on every module that was cut, before torch.save",
        )


def _linears(subject: Subject) -> Iterator[tuple[str, ModuleInfo, TensorInfo]]:
    """Every module with in_features or out_features and a two-dimensional weight of its own."""
    tensors = subject.checkpoint.tensors
    for path, module in subject.checkpoint.modules.items():
        attributes = module.attributes
        if "out_features" not in attributes and "in_features" not in attributes:
            continue
        weight = tensors.get(f"{path}.weight" if path else "weight")
        if weight is None or len(weight.shape) != 2:
            continue
        transposed = (attributes.get("in_features"), attributes.get("out_features")) == weight.shape
        if transposed and not module.short_class.endswith("Linear"):
            continue
        yield path, module, weight


def _place(subject: Subject, path: str) -> tuple[int | None, str]:
    """The layer that a module belongs to, and its name inside it."""
    prefix = f"{subject.geometry.layers_path}."
    if path.startswith(prefix):
        index, _, name = path[len(prefix) :].partition(".")
        if name and index.isascii() and index.isdigit():
            return int(index), printable(name, 80)
    return None, printable(path, 80)


def _units_by_tensor(subject: Subject) -> _Units:
    """Weight -> rows per head of its rows, of its columns, and what such a head is called."""
    units: dict[str, tuple[int | None, int | None, str]] = {}
    for _, attention in full_layers(subject):
        size = attention.head_dim.value if attention.head_dim else None
        for projection, row_unit, column_unit, noun in (
            (attention.q, attention.q_unit, None, "query head"),
            (attention.k, size, None, "KV head"),
            (attention.v, size, None, "KV head"),
            (attention.o, None, size, "query head"),
        ):
            if projection is not None and projection.derived is None:
                units[projection.tensor] = row_unit, column_unit, noun
    return units


def _as_heads(width: int, unit: int | None, noun: str) -> str:
    if not unit or width % unit:
        return ""
    heads = width // unit
    return f" ({heads} {noun}{'' if heads == 1 else 's'})"
