"""What the static rules will say of the repaired checkpoint, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, Defect, StorageInfo, TensorInfo
from gqacheck.geometry.config import config_layer_value
from gqacheck.geometry.facts import Expectations, Geometry, Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, LayerOrigin, Lineage, MlpOrigin, Origin
from gqacheck.repair.config import ConfigEdits, mend_config, plain_config
from gqacheck.repair.facts import LayerPlan, Refusal, RoleTake
from gqacheck.rules.rule import Finding, Severity

_NOT_MENDED = ("GQA010", "GQA011")
"""What is said of the pickle itself: it is gone in a new file, and nobody's reason to write one."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The checkpoint as it will be, without its bytes, the config edits, and the findings that will be left."""

    checkpoint: Checkpoint
    geometry: Geometry
    edits: ConfigEdits | None
    findings: tuple[Finding, ...]


def foresee(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    added: Mapping[str, TensorInfo],
    *,
    family: str | None,
    head_dim: int | None,
    carried: int | None,
    origins: Sequence[int] | None,
    untie: bool,
    as_module: bool,
    base: Subject | None = None,
    lineage: Lineage | None = None,
) -> Outlook:
    """What will stand in the repaired checkpoint, and what the static rules will find in it.

    shapes: of the tensors that change. added: tensors that are missing and come from the parent. as_module: it will be
    written as a whole module, whose attributes follow the weights. carried: head_dim as the modules say it, which
    nothing else may say. lineage: as it will be.
    """
    from gqacheck.rules import RULES
    from gqacheck.rules.run import run_rules

    tensors = {**_compact(checkpoint.tensors, shapes), **added}
    made = replace(
        checkpoint,
        tensors=tensors,
        modules={},
        globals=(),
        defects=tuple(defect for defect in checkpoint.defects if not _heals(defect, checkpoint)),
        container=Container.MODULE if as_module else checkpoint.container,
    )
    geometry = measure(made, family=family, head_dim=head_dim)
    if carried is not None and {layer.attention.head_dim.value for layer in geometry.layers
                                if layer.attention.head_dim is not None} != {carried}:  # fmt: skip
        head_dim = carried
    made = replace(made, tensors=renumbered(made.tensors, geometry))
    geometry = measure(made, family=family, head_dim=head_dim)
    edits = mend_config(Subject(made, geometry), origins=origins, untie=untie)
    if edits is not None and made.config is not None:
        config = ConfigInfo(plain_config(edits.values), made.config.source, made.config.class_name)
        made = replace(made, config=config)
        geometry = measure(made, family=family, head_dim=head_dim)
    if lineage is not None:
        lineage = replace(lineage, layers=tuple(_numbered(layer, place) for place, layer in enumerate(lineage.layers)))
    static = [rule for rule in RULES if rule.claim != "runtime"]
    subject = Subject(made, geometry, base=base, expect=Expectations(), lineage=lineage)
    findings, _ = run_rules(subject, static, tolerant=True)
    return Outlook(made, geometry, edits, tuple(findings))


def _compact(tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """Every tensor in a storage of its own that holds no more than it; tied ones share theirs as before."""
    found = {}
    for name, info in tensors.items():
        if name in shapes:
            shape = shapes[name]
            info = replace(info, shape=shape, strides=_dense(shape), storage_offset=0)
            key = f"new:{name}"
        elif info.storage is None or info.storage.nbytes < info.nbytes:
            found[name] = info  # its bytes are not there: the rules go on saying so
            continue
        else:
            view = (info.storage.key, info.storage_offset, info.shape, info.strides)
            key = f"{info.storage.file}:{view}"
            info = replace(info, strides=_dense(info.shape), storage_offset=0)
        file = info.storage.file if info.storage is not None else ""
        found[name] = replace(info, storage=StorageInfo(file, key, 0, info.nbytes, info.nbytes))
    return found


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _heals(defect: Defect, checkpoint: Checkpoint) -> bool:
    """Whether writing the tensors anew, with an index that goes with them, removes the defect."""
    if defect.kind == "shard-size":
        return True
    if defect.kind != "shard-index" or defect.message.startswith("a shard cannot be read"):
        return False
    if not defect.tensors:
        return defect.unit == ""  # numbered shards without an index
    return defect.unit in ("shard file", "tensors") and all(name in checkpoint.tensors for name in defect.tensors)


def renumbered(tensors: Mapping[str, TensorInfo], geometry: Geometry) -> dict[str, TensorInfo]:
    """The tensors with the layers numbered from 0 without gaps."""
    names = new_names(tensors, geometry)
    return {names[name]: replace(info, name=names[name]) for name, info in tensors.items()}


def new_names(tensors: Iterable[str], geometry: Geometry) -> dict[str, str]:
    """Stored name -> its name with the layers numbered from 0 without gaps."""
    if [layer.index for layer in geometry.layers] == list(range(geometry.n_layers)):
        return {name: name for name in tensors}
    stem = f"{geometry.layers_path}."
    places = {str(layer.index): str(place) for place, layer in enumerate(geometry.layers)}
    found = {}
    for name in tensors:
        index, dot, rest = name[len(stem) :].partition(".") if name.startswith(stem) else ("", "", "")
        found[name] = f"{stem}{places[index]}.{rest}" if dot and index in places else name
    return found


def _numbered(layer: LayerOrigin, place: int) -> LayerOrigin:
    return layer if layer.index == place else replace(layer, index=place)


def repaired_lineage(lineage: Lineage, plans: Sequence[LayerPlan]) -> Lineage:
    """``lineage`` as it will be when the plans are carried out."""
    planned = {plan.index: plan for plan in plans}
    layers = [_repaired(layer, planned[layer.index]) if layer.index in planned else layer for layer in lineage.layers]
    return replace(lineage, layers=tuple(layers))


def _repaired(layer: LayerOrigin, plan: LayerPlan) -> LayerOrigin:
    takes = {(take.role, take.expert): take for take in plan.takes if take.kind == "weight"}
    vectors = {(take.role, take.kind, take.expert) for take in plan.takes if take.kind != "weight"}
    n_q, n_kv = plan.heads or (layer.n_q, layer.n_kv)
    return replace(
        layer,
        n_q=n_q,
        n_kv=n_kv,
        q=_repaired_heads("q", layer.q, takes.get(("q", None))),
        k=_repaired_heads("k", layer.k, takes.get(("k", None))),
        v=_repaired_heads("v", layer.v, takes.get(("v", None))),
        o=_repaired_heads("o", layer.o, takes.get(("o", None))),
        mlps=tuple(_repaired_mlp(mlp, takes) for mlp in layer.mlps),
        vectors=tuple(
            replace(vector, wrong=(), found=()) if (vector.role, vector.kind, vector.expert) in vectors else vector
            for vector in layer.vectors
        ),
        cause="",
    )


def _repaired_heads(role: str, heads: Heads | None, role_take: RoleTake | None) -> Heads | None:
    if role_take is None:
        return heads
    take = role_take.take
    origins = tuple(
        heads.origins[position]
        if heads is not None and position != NOWHERE
        else Origin("exact", (take.parent[place],), order=take.orders.get(place))
        for place, position in enumerate(take.child)
    )
    state = heads.state if heads is not None and heads.told else "exact"
    return Heads(
        role, state, heads.n_parent if heads is not None else len(take), origins, heads.tensor if heads else ""
    )


def _repaired_mlp(mlp: MlpOrigin, takes: Mapping[tuple[str, int | str | None], RoleTake]) -> MlpOrigin:
    return replace(
        mlp,
        gate=_repaired_channels("gate", mlp.gate, takes.get(("gate", mlp.expert))),
        up=_repaired_channels("up", mlp.up, takes.get(("up", mlp.expert))),
        down=_repaired_channels("down", mlp.down, takes.get(("down", mlp.expert))),
    )


def _repaired_channels(role: str, own: Channels | None, role_take: RoleTake | None) -> Channels | None:
    if role_take is None:
        return own
    state = own.state if own is not None and own.told else "exact"
    n_parent = own.n_parent if own is not None else len(role_take.take)
    return Channels(role, state, n_parent, role_take.take.parent, None if own is None else own.similarity)


def mended(before: Sequence[Finding], after: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors and warnings of ``before`` that will not be there any more, at that severity."""
    left: dict[str, set[int]] = {}
    for finding in after:
        if finding.severity is not Severity.NOTE:
            left.setdefault(finding.code, set()).update(finding.layers or (-1,))
    gone = []
    for finding in before:
        if finding.severity is Severity.NOTE or finding.code in _NOT_MENDED:
            continue
        rest = left.get(finding.code)
        if rest is None or not rest & set(finding.layers or (-1,)):
            gone.append(finding)
    return tuple(gone)


def refusals(outlook: Outlook, planned: Sequence[Refusal]) -> tuple[Refusal, ...]:
    """What will still be an error, one sentence each."""
    told = {layer for refusal in planned for layer in refusal.layers}
    found = list(planned)
    for finding in outlook.findings:
        if finding.severity is Severity.ERROR and not (finding.layers and set(finding.layers) <= told):
            found.append(Refusal(finding.message, finding.layers, finding.code))
    return tuple(found)


def grown_ratios(before: Geometry, after: Geometry) -> tuple[Refusal, ...]:
    """Layers with more query heads per KV head than the config said: nobody cuts that way on purpose."""
    wrong: dict[str, list[int]] = {}
    for place, layer in enumerate(after.layers):
        n_q, n_kv = layer.attention.n_q_heads, layer.attention.n_kv_heads
        index = before.layers[place].index if place < len(before.layers) else layer.index
        stated_q = config_layer_value(before.config, "num_attention_heads", index)
        stated_kv = config_layer_value(before.config, "num_key_value_heads", index)
        if n_q and n_kv and stated_q and stated_kv and n_q * stated_kv > stated_q * n_kv:
            sentence = (
                f"{n_q} query heads over {n_kv} KV heads are more per KV head than the {stated_q} over {stated_kv} of "
                "the config: query heads were left beside KV heads that are not theirs, which takes --base to mend"
            )
            wrong.setdefault(sentence, []).append(index)
    return tuple(Refusal(sentence, tuple(layers), "GQA105") for sentence, layers in wrong.items())
