"""Checkpoint -> Geometry: the one entry point. Nothing here judges; what cannot be known is left out.

The rooms: `names` sorts tensor names, `recognise` finds the family, `slots` and `pieces` give every tensor its role,
`attention` and `mlp` read one layer, `head_dim` weighs what speaks of it, `outside` and `missing` account for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from gqacheck.checkpoint import Checkpoint, ModuleInfo, Plain
from gqacheck.errors import NotACheckpoint, UsageError
from gqacheck.geometry.attention import attention_of, measured_rows, norm_of
from gqacheck.geometry.config import (
    config_number,
    empty_layers,
    is_true,
    partial_rotary,
    text_config,
    with_our_spelling,
)
from gqacheck.geometry.facts import Claim, Geometry, Layer, Measured
from gqacheck.geometry.family import Family
from gqacheck.geometry.head_dim import LARGEST_HEAD_DIM, Evidence, believed, model_claims
from gqacheck.geometry.missing import habits_of, missing_in
from gqacheck.geometry.mlp import mlp_of
from gqacheck.geometry.names import LayerList, Names, clean_modules, sort_names, text_layers
from gqacheck.geometry.outside import Outside, buffer_length, sort_outside
from gqacheck.geometry.pieces import Parts, sort_parts
from gqacheck.geometry.recognise import recognise
from gqacheck.geometry.slots import Slots

__all__ = ["measure"]

_PREDICTS_SEVERAL = ("eh_proj.weight", "enorm.weight", "hnorm.weight")
_ATTENTION_NORMS = ("q", "k")


def measure(
    checkpoint: Checkpoint, *, family: str | None = None, head_dim: int | None = None, said_by: str = "--head-dim"
) -> Geometry:
    """What each layer of ``checkpoint`` measures, by role.

    family: ``--family``; head_dim: ``--head-dim``, or what ``said_by`` names; both win over what the
    checkpoint says.

    Raises
        NotACheckpoint: no decoder layer was found.
        UsageError: ``family`` is not known, or ``head_dim`` is not a positive number.
    """
    if head_dim is not None and (type(head_dim) is not int or not 0 < head_dim <= LARGEST_HEAD_DIM):
        raise UsageError(f"--head-dim must be a whole number from 1 to {LARGEST_HEAD_DIM}, not {head_dim}")
    names = sort_names(checkpoint.tensors.values())
    group = text_layers(names.lists)
    if group is None:
        raise NotACheckpoint(_no_layers(checkpoint, names))
    config, config_source, wrapped = text_config(checkpoint)
    modules = clean_modules(checkpoint.modules)
    kind, family_source = recognise(checkpoint, config, wrapped, modules, group, family)
    config = with_our_spelling(config, kind)
    predictors = _drop_predictors(group)
    for index in empty_layers(config):
        group.layers.setdefault(index, {})
    slots = Slots(kind, checkpoint.quantization is not None)
    layers, parts = _layers(group, kind, slots, config, modules)
    if all(own.empty for own in parts):
        raise NotACheckpoint(_no_weights(group, names))
    around = sort_outside(names, group, kind, slots, modules, wrapped)
    evidence = Evidence(
        kind,
        config,
        config_source or "config",
        [rows for layer in layers if (rows := measured_rows(layer.attention, layer.index, kind)) is not None],
        option=head_dim,
        option_source=said_by,
        inv_freq=around.inv_freq or _layer_inv_freq(group),
        rotary_share=partial_rotary(config, kind),
    )
    layers = _with_head_dim(layers, evidence)
    tied = _tied(checkpoint, around, config, kind)
    return Geometry(
        family=kind,
        family_source=family_source,
        prefix=_stored_prefix(group, around.places.prefix),
        layers_path=group.stored,
        layers=tuple(layers),
        hidden_size=_hidden_size(around, layers, config, config_source),
        embedding=around.embedding,
        lm_head=around.lm_head,
        lm_head_tied=tied,
        final_norm=around.final_norm,
        unknown=(*(name for own in parts for name in own.unknown), *group.doubles, *around.unknown),
        missing=tuple(_missing(checkpoint, layers, parts, kind, config, around, tied, wrapped)),
        not_checked=tuple(_not_checked(names, predictors, layers, around, parts)),
        config=config,
        config_source=config_source,
    )


def _no_layers(checkpoint: Checkpoint, names: Names) -> str:
    if names.adapters and not names.lists:
        return f"{len(names.adapters):,} adapter tensors and no model: merge the adapter into its base, then check that"
    return f"no decoder layers among its {len(checkpoint.tensors):,} tensors (names such as model.layers.0.…)"


def _no_weights(group: LayerList, names: Names) -> str:
    if names.adapters:
        return f"{len(names.adapters):,} adapter tensors and no model: merge the adapter into its base, then check that"
    return (
        f"{len(group.layers):,} layers under {group.stored!r}, and none holds an attention or MLP weight "
        "whose name is known; say which names it follows with --family"
    )


def _drop_predictors(group: LayerList) -> dict[int, int]:
    """Takes the layers that predict further tokens (DeepSeek's MTP) out; their index -> tensors."""
    found = {
        index: len(tensors)
        for index, tensors in group.layers.items()
        if any(name in tensors for name in _PREDICTS_SEVERAL)
    }
    for index in found:
        del group.layers[index]
    return found


def _layers(
    group: LayerList, family: Family, slots: Slots, config: Mapping[str, Plain], modules: Mapping[str, ModuleInfo]
) -> tuple[list[Layer], list[Parts]]:
    layers, all_parts = [], []
    for index in sorted(group.layers):
        path, clean_path = f"{group.stored}.{index}", f"{group.path}.{index}"
        parts = sort_parts(group.layers[index], slots)
        norms = (norm_of(role, parts) for role in parts.norms if role not in _ATTENTION_NORMS)
        layers.append(
            Layer(
                index=index,
                path=path,
                attention=attention_of(parts, index, path, family, config, modules, clean_path),
                mlp=mlp_of(parts, index, path, family, config, modules, clean_path),
                norms=tuple(norm for norm in norms if norm is not None),
                module=modules.get(clean_path),
            )
        )
        all_parts.append(parts)
    return layers, all_parts


def _with_head_dim(layers: Iterable[Layer], evidence: Evidence) -> list[Layer]:
    above, below = model_claims(evidence)
    twice = 2 if evidence.family.gated_q else 1
    result = []
    for layer in layers:
        attention = layer.attention
        rows = measured_rows(attention, layer.index, evidence.family)
        if rows is not None:
            own_norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
            value = believed(evidence, above, below, attention.module, own_norms, rows)
            unit = value.value * twice if value is not None else None
            layer = replace(layer, attention=replace(attention, head_dim=value, q_unit=unit))
        result.append(layer)
    return result


def _layer_inv_freq(group: LayerList) -> int | None:
    """The rotary buffer of transformers before 4.48, one copy per layer: the first layer's."""
    first = next((tensors for _, tensors in sorted(group.layers.items()) if tensors), {})
    for name, tensor in first.items():
        if name.endswith("inv_freq") and "rotary" in name:
            return buffer_length(tensor)
    return None


def _stored_prefix(group: LayerList, prefix: str) -> str:
    """``prefix`` as the file spells it: wrappers that cleaning took out belong to it."""
    if group.stored == group.path:
        return prefix
    own = group.path[len(prefix) :] if group.path.startswith(prefix) else group.path
    return group.stored[: -len(own)] if group.stored.endswith(own) else prefix


def _hidden_size(
    around: Outside, layers: Iterable[Layer], config: Mapping[str, Plain], source: str | None
) -> Measured | None:
    claims = []
    if around.embedding is not None and around.embedding.columns > 0:
        claims.append(Claim(around.embedding.columns, f"{around.embedding.name} columns"))
    if around.final_norm is not None and around.final_norm.width > 1:
        claims.append(Claim(around.final_norm.width, f"{around.final_norm.name} width"))
    if not claims:
        widths = Counter(norm.width for layer in layers for norm in layer.norms)
        if widths:
            claims.append(Claim(widths.most_common(1)[0][0], "width of most norms"))
    stated = config_number(config, "hidden_size")
    if stated is not None and stated > 0:
        claims.append(Claim(stated, f"{source} hidden_size"))
    return Measured(claims[0].value, claims[0].source, tuple(claims)) if claims else None


def _tied(checkpoint: Checkpoint, around: Outside, config: Mapping[str, Plain], family: Family) -> bool:
    """Whether lm_head is the embedding: one storage for both, or none stored where the config says tied."""
    if around.lm_head is None:
        return is_true(config, "tie_word_embeddings", family.ties_by_default and bool(config))
    if around.embedding is None:
        return False
    a, b = checkpoint.tensors[around.lm_head.tensor], checkpoint.tensors[around.embedding.tensor]
    if a.storage is None or b.storage is None:
        return False
    return (a.storage.file, a.storage.key, a.storage_offset) == (b.storage.file, b.storage.key, b.storage_offset)


def _missing(
    checkpoint: Checkpoint,
    layers: list[Layer],
    parts: list[Parts],
    family: Family,
    config: Mapping[str, Plain],
    around: Outside,
    tied: bool,
    wrapped: bool,
) -> Iterable[tuple[str, int | None]]:
    places = around.places
    if around.embedding is None:
        yield f"{places.embeddings[0]}.weight", None
    habits = habits_of(layers, parts)
    for layer, own in zip(layers, parts, strict=True):
        for name in missing_in(layer, own, family, config, habits):
            yield name, layer.index
    if around.final_norm is None and places.final_norms:
        yield f"{places.final_norms[0]}.weight", None
    if around.lm_head is None and not tied and not _may_lack_lm_head(checkpoint, config, around, wrapped):
        yield f"{places.lm_heads[0]}.weight", None


def _may_lack_lm_head(checkpoint: Checkpoint, config: Mapping[str, Plain], around: Outside, wrapped: bool) -> bool:
    """A backbone saved alone, a model with another head, or a file whose ties nobody states."""
    if around.other_head is not None or not around.places.stem:
        return True
    if not config or (wrapped and not isinstance(config.get("tie_word_embeddings"), bool)):
        return True
    root = checkpoint.modules.get("")
    if root is not None and root.short_class.endswith("Model"):
        return True
    architectures = config.get("architectures")
    return isinstance(architectures, tuple | list) and any(
        isinstance(name, str) and name.endswith(("Model", "ForSequenceClassification", "ForTokenClassification"))
        for name in architectures[:1]
    )


def _not_checked(
    names: Names, predictors: Mapping[int, int], layers: Iterable[Layer], around: Outside, parts: Iterable[Parts]
) -> Iterable[str]:
    yield from around.not_checked
    for index, count in sorted(predictors.items()):
        yield f"layer {index}: {count:,} tensors that predict further tokens (MTP)"
    kinds = Counter(layer.attention.kind for layer in layers)
    if kinds["mla"]:
        yield f"multi-head latent attention in {kinds['mla']:,} layers: the head rules do not apply to it"
    if kinds["linear"]:
        yield f"linear attention in {kinds['linear']:,} layers: the head rules do not apply to it"
    if names.adapters:
        yield f"unmerged adapters: {len(names.adapters):,} tensors (lora_A and the like); merge them to check the sum"
    blocks = sum(1 for own in parts for piece in own.stacked.values() if piece.blocks is not None)
    if blocks:
        yield f"mxfp4 experts: {blocks:,} packed tensors, only their outer sizes are read"
