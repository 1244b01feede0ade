"""The config of a padded checkpoint: the smallest sizes that a stock class accepts, and what the zeros cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gqacheck.export.facts import Padding, Refused
from gqacheck.export.padding import PADDED, Target, layer_sizes, smallest
from gqacheck.geometry.facts import Geometry
from gqacheck.report.words import scaled

_KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
_NO_MORE = ("drop_attn_list", "drop_mlp_list")  # the blocks are there afterwards, as zeros
_MOST = 4
"""How many times as many heads as necessary are tried before a class is given up."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to pad: the sizes, the class's config that says them, and how much attention costs then."""

    target: Target
    values: dict[str, Any]
    cost: int


def choices(geometry: Geometry, classes: Sequence[tuple[type[Any], Mapping[str, Any]]]) -> list[Choice]:
    """What can be tried, cheapest first; of equals the class that comes first.

    classes: config classes, each with the values for the largest layer.

    Raises:
        Refused: no sizes hold every layer, or no class accepts any.
    """
    least = smallest(geometry)
    found: list[Choice] = []
    refusals: list[str] = []
    for cls, largest in classes:
        values = {key: value for key, value in largest.items() if key not in _NO_MORE}
        values[PADDED] = layer_sizes(geometry)
        targets = list(_accepted(geometry, _with_widths(least, cls), values, cls, refusals))
        found += [Choice(t, values | _numbers(t, cls), _cost(geometry, t)) for t in targets]
    if not found:
        raise Refused("; ".join(dict.fromkeys(refusals)) or "no number of heads is accepted")
    return sorted(found, key=lambda choice: choice.cost)


def _with_widths(target: Target, cls: type[Any]) -> Target:
    """The target with experts as wide as the class can say: a shared one may be a multiple of the routed ones."""
    from gqacheck.runtime.configure import known_keys

    fields = known_keys(cls)
    if not target.shared or not target.routed or "shared_expert_intermediate_size" in fields:
        return target
    if "n_shared_experts" in fields:
        return replace(target, shared=-(-target.shared // target.routed) * target.routed)
    both = max(target.shared, target.routed)
    return replace(target, shared=both, routed=both)


def _accepted(
    geometry: Geometry, least: Target, values: dict[str, Any], cls: type[Any], refusals: list[str]
) -> Iterator[Target]:
    """The cheapest sizes that the config class accepts, and the cheapest where heads times head_dim is hidden_size.

    The latter for the classes that know no other head_dim, whatever their configs say.
    """
    if not least.kv:
        yield least
        return
    whole = values["hidden_size"] // max(_head_dim(geometry), 1)
    refused: set[int] = set()
    accepted = False
    for target in _larger(geometry, least, whole):
        if target.heads in refused or (accepted and target.heads != whole):
            continue
        said = _refusal(cls, values | _numbers(target, cls))
        if said:
            refusals.append(said)
            refused.add(target.heads)
            continue
        yield target
        accepted = True
        if target.heads == whole:
            return


def _larger(geometry: Geometry, least: Target, whole: int) -> list[Target]:
    """Sizes from ``least`` up, cheapest first."""
    most = max(_MOST * least.heads, whole)
    found = [
        replace(least, kv=kv, group=group)
        for kv in range(least.kv, most // least.group + 1)
        for group in range(least.group, most // kv + 1)
    ]
    return sorted(found, key=lambda target: (_cost(geometry, target), target.kv))


def _cost(geometry: Geometry, target: Target) -> int:
    """What the attention of one layer has in numbers, per column of the hidden size."""
    units = [layer.attention for layer in geometry.layers if layer.attention.kind == "full"]
    if not units:
        return 0
    head_dim = units[0].head_dim.value if units[0].head_dim is not None else 1
    return target.heads * ((units[0].q_unit or head_dim) + head_dim) + 2 * target.kv * head_dim


def _refusal(cls: type[Any], values: dict[str, Any]) -> str:
    """What the config class has against the values, "" for nothing."""
    from gqacheck.runtime.configure import one_line

    try:
        cls(**{key: value for key, value in values.items() if key != "model_type"})
    except Exception as error:  # config classes raise whatever they like; the sentence goes to the user
        return f"{cls.__name__} refuses {values['num_attention_heads']} query heads: {one_line(error)}"
    return ""


def _numbers(target: Target, cls: type[Any]) -> dict[str, Any]:
    """The sizes under the names that the class has for them."""
    from gqacheck.runtime.configure import known_keys

    fields = known_keys(cls)
    found: dict[str, Any] = {}
    if target.kv:
        found["num_attention_heads"] = target.heads
        found |= {key: target.kv for key in _KV_COUNTS if key in fields}
    if target.routed:
        found["moe_intermediate_size" if "moe_intermediate_size" in fields else "intermediate_size"] = target.routed
    if target.shared and "n_shared_experts" in fields and "shared_expert_intermediate_size" not in fields:
        found["n_shared_experts"] = target.shared // target.routed
    return found


def told(geometry: Geometry, target: Target, *, stored: int, written: int) -> Padding:
    """What the zeros cost. stored: parameters without them; written: with them."""
    before = after = 0
    for layer in geometry.layers:
        a = layer.attention
        if a.kind == "full" and a.head_dim is not None:
            before += 2 * (a.n_kv_heads or 0) * a.head_dim.value
        if a.kind in ("full", "dropped"):
            after += 2 * target.kv * _head_dim(geometry)
    return Padding(target.heads, target.kv, target.dense, target.routed, stored, written - stored, before, after)


def padding_note(padding: Padding) -> str:
    """What was added, what the layers had, and what it costs, one sentence."""
    sizes = []
    if padding.heads:
        sizes.append(f"{padding.heads}:{padding.kv_heads} heads")
    if padding.width:
        sizes.append(f"{padding.width:,} MLP channels")
    if padding.expert_width:
        sizes.append(f"{padding.expert_width:,} expert channels")
    return (
        f"padded: every layer has {', '.join(sizes)} now, zeros where it had fewer; what "
        f"each layer had stands in config.json under {PADDED}"
    )


def cost_words(padding: Padding) -> str:
    """The parameters of zeros, and the KV cache where it grew."""
    more = 100 * padding.zeros / max(padding.parameters, 1)
    said = f"{scaled(padding.zeros)} parameters of zeros beside {scaled(padding.parameters)} ({more:.1f} % more)"
    if padding.kv_after == padding.kv_before:
        return said
    return f"{said}, and a KV cache of {padding.kv_after:,} numbers per token where {padding.kv_before:,} would do"


def _head_dim(geometry: Geometry) -> int:
    return next((x.attention.head_dim.value for x in geometry.layers if x.attention.head_dim is not None), 0)
