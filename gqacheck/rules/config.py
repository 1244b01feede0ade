"""GQA403 and GQA404: the config's head counts and MLP widths against what the tensors measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqacheck.checkpoint import Container
from gqacheck.geometry.config import config_layer_claim, config_number, has_layer_list
from gqacheck.geometry.facts import Attention, Claim, Layer, Projection, Subject
from gqacheck.rules.blocks import EXPERTS_ALIKE, Block, blocks, inside, names, short, weight_refused
from gqacheck.rules.built import built_head_dim, built_heads, stated_width, width_key
from gqacheck.rules.heads import counted
from gqacheck.rules.predict import once_saved, refused
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container
from gqacheck.rules.spelling import config_name, spelled

KV_HEADS_DEFAULT_TO_HEADS = frozenset(
    {"apertus", "arcee", "cohere", "cohere2", "granite", "granitemoe", "hunyuan_v1_dense", "internlm3", "llama",
     "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3"}
)  # fmt: skip
"""Families whose config takes num_key_value_heads = num_attention_heads when it is not stated."""

_FORWARD_READS_CONFIG = frozenset({"phi3"})


def trusted_head_dim(attention: Attention) -> int | None:
    """head_dim of the block, None when it is only a guess."""
    found = attention.head_dim
    return None if found is None or found.source.startswith("guessed") else found.value


def config_heads(subject: Subject) -> Iterator[Violation]:
    """The head counts of the config are not those of the tensors.

    What it checks
        num_attention_heads against q_proj's rows / head_dim and num_key_value_heads against k_proj's, when all layers
        measure the same. Lists under gqacheck_layers are read before the number and compared layer by layer. A
        config that leaves num_key_value_heads out is taken at its class's word where that is num_attention_heads.

    Why it matters
        LLM-Pruner and most scripts never touch the config. A folder is built from it: its tensors then meet
        parameters of another shape.

    What you would see
        Folder: `MISMATCH … Reinit due to size mismatch - ckpt: torch.Size([72, 96]) vs model:torch.Size([96, 96])` and
        an error; with ignore_mismatched_sizes=True random weights, silently. State dict: `size mismatch for …
        copying a param with shape …`. A whole-module pickle runs from its modules and meets this only when saved;
        Phi-3's forward reads the config, so there it is an error too.

    Fix
        Set both numbers, and state head_dim when hidden_size / num_attention_heads no longer gives it.

    Known misses
        Checkpoints whose layers differ (GQA405) and carry no lists. Keys that are left out and have a fixed default
        (Mistral's 8 KV heads).

    Source
        The q_proj and k_proj of every stock class: num_heads * head_dim rows; loading report of 5.23, measured.
    """
    for key, role in (("num_attention_heads", "q"), ("num_key_value_heads", "k")):
        if has_layer_list(subject.geometry.config, key):
            yield from _heads_by_layer(subject, key, role)
        else:
            yield from _heads_at_once(subject, key, role)


def _heads(layer: Layer, role: str) -> tuple[int, int, Projection] | None:
    """Heads, rows per head and the projection, None when they cannot be told."""
    attention = layer.attention
    head_dim = trusted_head_dim(attention)
    projection, count, unit = (
        (attention.q, attention.n_q_heads, attention.q_unit)
        if role == "q"
        else (attention.k, attention.n_kv_heads, head_dim)
    )
    if head_dim is None or projection is None or count is None or unit is None:
        return None
    return count, unit, projection


def _heads_by_layer(subject: Subject, key: str, role: str) -> Iterator[Violation]:
    for layer in subject.geometry.layers:
        found = _heads(layer, role) if layer.attention.kind == "full" else None
        claim = config_layer_claim(subject.geometry.config, key, layer.index, config_name(subject))
        if found is not None and claim is not None and claim.value != found[0]:
            source = claim.source.rpartition("[")[0] or claim.source
            yield _heads_violation(subject, layer, key, found, Claim(claim.value, source), layer.index)


def _heads_at_once(subject: Subject, key: str, role: str) -> Iterator[Violation]:
    layers = [layer for layer in subject.geometry.layers if layer.attention.kind == "full"]
    measured = [_heads(layer, role) for layer in layers]
    if not measured or measured[0] is None:
        return
    first = measured[0]
    claim = _stated_heads(subject, key)
    alike = all(found is not None and found[:2] == first[:2] for found in measured)
    if claim is not None and alike and claim.value != first[0]:
        yield _heads_violation(subject, layers[0], key, first, claim, None)


def _stated_heads(subject: Subject, key: str) -> Claim | None:
    config, source = subject.geometry.config, config_name(subject)
    value = config_number(config, key)
    if value is not None:
        return Claim(value, f"{source} {spelled(subject, key)}")
    default = subject.geometry.family.name in KV_HEADS_DEFAULT_TO_HEADS and config.get(key) is None
    heads = config_number(config, "num_attention_heads")
    if key == "num_key_value_heads" and default and heads is not None:
        return Claim(heads, f"{source} has no {key}, so num_attention_heads")
    return None


def _heads_violation(
    subject: Subject, layer: Layer, key: str, found: tuple[int, int, Projection], claim: Claim, index: int | None
) -> Violation:
    count, unit, projection = found
    kind = "query heads" if key == "num_attention_heads" else "KV heads"
    part = f"the {projection.role} part of {short(projection)}" if projection.derived else short(projection)
    consequence = once_saved(subject, _heads_refused(subject, layer, found, claim))
    severity = by_container(subject, folder=Severity.ERROR, module=Severity.WARNING)
    if _reads_config(subject, layer):
        severity = Severity.ERROR
        consequence = f"forward of this class goes by the config, not by the weights, and cuts {kind} at {claim.value}"
    return Violation(
        message=f"{part} has {projection.rows} rows = {counted(count, 'head')} of {unit}, but {claim.source} is "
        f"{claim.value}",
        layer=index,
        tensors=(projection.tensor,),
        expected=Quantity(claim.value, kind),
        actual=Quantity(count, kind),
        source=f"tensor shapes, {claim.source}",
        consequence=consequence,
        fix=_heads_fix(subject, layer, key, count, index),
        severity=severity,
    )


def _heads_refused(subject: Subject, layer: Layer, found: tuple[int, int, Projection], claim: Claim) -> str:
    _, unit, projection = found
    attention, own = layer.attention, layer.attention.head_dim
    head_dim = built_head_dim(subject) or (own.value if own is not None else unit)
    if not projection.derived or attention.fused is None:
        rows = claim.value * head_dim * (unit // own.value if own is not None else 1)
        stored, built = (projection.rows, projection.columns), (rows, projection.columns)
        return refused(subject, inside(layer, projection.tensor), stored, built)
    fused, heads = attention.fused, built_heads(subject, "num_attention_heads", layer.index)
    kv_heads = built_heads(subject, "num_key_value_heads", layer.index) or heads
    if heads is None or kv_heads is None:
        return (
            f"the class builds {short(fused)} for {claim.value} heads, and loading reports a size mismatch and raises"
        )
    built = ((heads + 2 * kv_heads) * head_dim, fused.columns)
    return refused(subject, inside(layer, fused.tensor), (fused.rows, fused.columns), built)


def _reads_config(subject: Subject, layer: Layer) -> bool:
    module = layer.attention.module
    return (
        subject.container is Container.MODULE
        and subject.geometry.family.name in _FORWARD_READS_CONFIG
        and module is not None
        and "num_heads" not in module.attributes
    )


def _heads_fix(subject: Subject, layer: Layer, key: str, count: int, index: int | None) -> str:
    if index is not None:
        return f"write {count} into this layer's entry"
    q, kv = layer.attention.n_q_heads, layer.attention.n_kv_heads
    if q and kv and q % kv:
        return f"cut whole KV groups first (GQA104), then set {spelled(subject, key)} to what is left"
    fix = f"set {spelled(subject, key)} to {count}"
    geometry, head_dim = subject.geometry, trusted_head_dim(layer.attention)
    hidden = geometry.hidden_size.value if geometry.hidden_size else None
    states_it = config_number(geometry.config, "head_dim") is not None or geometry.family.default_head_dim is not None
    if key == "num_attention_heads" and not states_it and hidden and head_dim and hidden // max(count, 1) != head_dim:
        fix += f" and head_dim to {head_dim}, which {hidden} // {count} no longer gives"
    return fix


def config_intermediate(subject: Subject) -> Iterator[Violation]:
    """The MLP width of the config is not that of the tensors.

    What it checks
        Rows of up_proj against intermediate_size, when all MLPs of one kind measure the same: dense layers, routed
        experts (moe_intermediate_size where the config has it) and shared experts each against their own key. A list
        under gqacheck_layers is read before the number and compared layer by layer.

    Why it matters
        A pruner that cuts the MLP and leaves the config makes a folder that cannot be loaded.

    What you would see
        Folder: `MISMATCH … Reinit due to size mismatch - ckpt: torch.Size([72, 96]) vs model:torch.Size([64, 96])` and
        an error; with ignore_mismatched_sizes=True random weights, silently. A whole-module pickle runs.

    Fix
        Set the key that the message names to the measured width.

    Known misses
        Checkpoints whose layers differ (GQA405) and carry no lists. Keys that are left out and have a fixed default.

    Source
        The up_proj of every stock class; loading report of transformers 5.23, measured.
    """
    if has_layer_list(subject.geometry.config, "intermediate_size"):
        yield from _widths_by_layer(subject)
        return
    groups: dict[str, list[_Width]] = {}
    for width in _widths(subject):
        groups.setdefault(width.key, []).append(width)
    for key, found in groups.items():
        first = found[0]
        claim = stated_width(subject, key)
        if claim is None or claim.value == first.rows or any(width.rows != first.rows for width in found):
            continue
        if subject.geometry.family.generic and claim.value == 2 * first.rows:
            continue  # some families (the first Qwen) count gate and up together
        yield _width_violation(subject, first, claim, None)


@dataclass(frozen=True, slots=True)
class _Width:
    """Rows of one up projection, with the config key that should say so."""

    key: str
    rows: int
    layer: Layer
    block: Block
    up: Projection


def _widths(subject: Subject) -> Iterator[_Width]:
    for layer in subject.geometry.layers:
        for block in blocks(layer.mlp):
            up = block.up
            if up is None or (block.gate is not None and block.gate.rows != up.rows):
                continue
            key = width_key(subject, block)
            if key is not None:
                yield _Width(key, up.rows, layer, block, up)


def _widths_by_layer(subject: Subject) -> Iterator[Violation]:
    for width in _widths(subject):
        if width.key != "intermediate_size" or width.block.expert not in (None, "stacked", 0):
            continue
        claim = config_layer_claim(subject.geometry.config, width.key, width.layer.index, config_name(subject))
        if claim is not None and claim.value != width.rows:
            source = claim.source.rpartition("[")[0] or claim.source
            yield _width_violation(subject, width, Claim(claim.value, source), width.layer.index)


def _width_violation(subject: Subject, width: _Width, claim: Claim, index: int | None) -> Violation:
    up, block = width.up, width.block
    of = "" if block.expert is None else " of the shared expert" if block.expert == "shared" else " of every expert"
    part = f"half of {short(up)}" if up.derived else short(up)
    numbered = isinstance(block.expert, int) and subject.container is Container.FOLDER
    text = EXPERTS_ALIKE if numbered else weight_refused(subject, width.layer, block, up, rows=claim.value)
    key = claim.source.removeprefix(f"{config_name(subject)} ")
    return Violation(
        message=f"{part}{of} has {up.rows} rows, but {claim.source} is {claim.value}",
        layer=index,
        tensors=names(up),
        expected=Quantity(claim.value, "MLP channels"),
        actual=Quantity(up.rows, "MLP channels"),
        source=f"tensor shapes, {claim.source}",
        consequence=once_saved(subject, text),
        fix=f"set {key} to {up.rows}" if index is None else f"write {up.rows} into this layer's entry",
        severity=by_container(subject, folder=Severity.ERROR, module=Severity.WARNING),
    )
