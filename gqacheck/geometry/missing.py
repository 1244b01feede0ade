"""What a family needs and a file lacks, by name as the file would spell it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gqacheck.checkpoint import Plain
from gqacheck.geometry.config import is_true
from gqacheck.geometry.facts import Layer
from gqacheck.geometry.family import Family
from gqacheck.geometry.pieces import Parts, Piece

_MOST_EXPERTS = 1 << 14
_BEFORE_ATTENTION = {"input", "post_self_attn"}
_BEFORE_MLP = {"post_attention", "pre_feedforward", "post_feedforward", "post_mlp", "mlp"}


@dataclass(frozen=True, slots=True)
class Habits:
    """How this file spells things, from all its layers.

    modules: dense role, ``router`` or ``shared <role>`` -> module that most layers use. experts: role -> module below
    one expert. stacked: role -> name of the tensor. norms: (kind of attention, role) -> module, for norms that most
    layers of that kind have.
    """

    modules: Mapping[str, str]
    experts: Mapping[str, str]
    stacked: Mapping[str, str]
    norms: Mapping[tuple[str, str], str]


def habits_of(layers: Sequence[Layer], parts: Sequence[Parts]) -> Habits:
    """The spellings and optional norms that the layers share."""
    spelled: defaultdict[str, Counter[str]] = defaultdict(Counter)
    experts: dict[str, str] = {}
    stacked: dict[str, str] = {}
    norms: Counter[tuple[str, str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for layer, own in zip(layers, parts, strict=True):
        kind = layer.attention.kind
        kinds[kind] += 1
        for role, piece in own.dense.items():
            spelled[role][piece.module] += 1
        if own.router is not None:
            spelled["router"][own.router.module] += 1
        for role, piece in own.shared.items():
            spelled[f"shared {role}"][piece.module] += 1
        for role, piece in own.stacked.items():
            if piece.weight is not None:
                stacked.setdefault(role, piece.weight.name.removeprefix(f"{layer.path}."))
        for expert in own.experts.values():
            if len(expert) > len(experts):
                for role, piece in expert.items():
                    experts[role] = _below_expert(piece)
        for role, piece in own.norms.items():
            norms[kind, role, piece.module] += 1
    usual = {
        (kind, role): module for (kind, role, module), count in norms.items() if 2 * count > kinds[kind] and count > 1
    }
    return Habits({role: counts.most_common(1)[0][0] for role, counts in spelled.items()}, experts, stacked, usual)


def _below_expert(piece: Piece) -> str:
    return piece.module.partition(".experts.")[2].partition(".")[2]


def missing_in(
    layer: Layer, parts: Parts, family: Family, config: Mapping[str, Plain], habits: Habits
) -> Iterator[str]:
    """Names of the weights that this layer lacks."""
    for group in (
        _attention(layer, parts, family, config, habits),
        _mlp(layer, parts, family, habits),
        _norms(layer, parts, family, config, habits),
    ):
        for name in group:
            yield f"{layer.path}.{name}"


def _lacking(roles: Sequence[str], pieces: Mapping[str, Piece], family: Family, habits: Habits) -> Iterator[str]:
    beside = {piece.module.rpartition(".")[0] for piece in pieces.values()}
    for role in roles:
        piece = pieces.get(role)
        if piece is not None and piece.stored:
            continue
        usual = habits.modules.get(role)
        spellings = [] if usual is None else [usual]
        if not family.generic:
            spellings += family.roles.get(role, ())
        if piece is not None:
            spellings = [piece.module]
        fitting = [name for name in spellings if name.rpartition(".")[0] in beside]
        for name in (*fitting, *spellings)[:1]:
            yield f"{name}.weight"


def _attention(
    layer: Layer, parts: Parts, family: Family, config: Mapping[str, Plain], habits: Habits
) -> Iterator[str]:
    kind = layer.attention.kind
    if kind == "absent" and family.linear and _declares_linear(config, layer.index):
        yield f"{family.linear[0]}.out_proj.weight"
        return
    if family.attention == "mla" and kind in ("mla", "absent"):
        yield from _lacking(("o",), parts.dense, family, habits)
        return
    if kind not in ("full", "absent"):
        return
    separate = any(role in parts.dense for role in ("q", "k", "v"))
    fused = "qkv" in parts.dense or (not separate and "qkv" in family.roles and "q" not in family.roles)
    if family.generic and not separate and "qkv" not in parts.dense:
        fused = "q" not in habits.modules
    yield from _lacking(("qkv", "o") if fused else ("q", "k", "v", "o"), parts.dense, family, habits)
    if "sinks" in family.roles and not family.generic and parts.sinks is None:
        yield family.roles["sinks"][0]


def _declares_linear(config: Mapping[str, Plain], index: int) -> bool:
    kinds = config.get("layer_types")
    return isinstance(kinds, tuple | list) and index < len(kinds) and kinds[index] == "linear_attention"


def _mlp(layer: Layer, parts: Parts, family: Family, habits: Habits) -> Iterator[str]:
    kind = layer.mlp.kind
    if kind == "dropped":
        return
    if kind == "moe":
        yield from _experts(parts, family, habits)
        return
    roles: Mapping[str, object] = parts.dense
    if kind == "absent":
        roles = habits.modules if family.generic else family.roles
        if "up" not in roles and "gate_up" not in roles:
            yield from _lacking(("router",), {}, family, habits)
            return
    if "up" not in parts.dense and ("gate_up" in roles or ("gate_up" in family.roles and "gate" not in family.roles)):
        needed: tuple[str, ...] = ("gate_up", "down")
    elif family.mlp == "plain" or kind == "plain":
        needed = ("up", "down")
    else:
        needed = ("gate", "up", "down")
    yield from _lacking(needed, parts.dense, family, habits)


def _experts(parts: Parts, family: Family, habits: Habits) -> Iterator[str]:
    router = {} if parts.router is None else {"router": parts.router}
    yield from _lacking(("router",), router, family, habits)
    if parts.stacked:
        yield from _stacked(parts.stacked, family, habits)
    if parts.experts:
        last = max(parts.experts)
        names = _expert_names(family, habits.experts)
        head = next(iter(next(iter(parts.experts.values())).values())).module.partition(".experts.")[0]
        for number in range(last + 1) if last < _MOST_EXPERTS else sorted(parts.experts):
            own = parts.experts.get(number, {})
            for role, name in names.items():
                if role not in own or not own[role].stored:
                    yield f"{head}.experts.{number}.{name}.weight"
    yield from _shared(parts.shared, family, habits)


def _shared(pieces: Mapping[str, Piece], family: Family, habits: Habits) -> Iterator[str]:
    known = {r: habits.modules[f"shared {r}"] for r in ("gate", "up", "down") if f"shared {r}" in habits.modules}
    if not known:
        return
    owner = next(iter(known.values())).rpartition(".")[0]
    names = _expert_names(family, {role: module.rpartition(".")[2] for role, module in known.items()})
    for role, name in names.items():
        if role not in pieces or not pieces[role].stored:
            yield f"{owner}.{name}.weight"


def _stacked(pieces: Mapping[str, Piece], family: Family, habits: Habits) -> Iterator[str]:
    some = next(iter(pieces.values()))
    ending = ".weight" if some.weight is not None and some.weight.name.endswith(".weight") else ""
    for role in ("gate_up", "down"):
        if role in pieces and pieces[role].stored:
            continue
        for name in family.roles.get(f"stacked_{role}", ())[:1]:
            yield habits.stacked.get(role, f"{some.module.rpartition('.')[0]}.{name}{ending}")


def _expert_names(family: Family, known: Mapping[str, str]) -> Mapping[str, str]:
    """The parts of one expert: those that some expert has, the others spelled in the same manner (w1 -> w2)."""
    style = 0
    for role, name in known.items():
        spellings = family.roles.get(f"expert_{role}", ())
        style = spellings.index(name) if name in spellings else style
    names = {}
    for role in ("gate", "up", "down"):
        spellings = family.roles.get(f"expert_{role}", ())
        usual = known.get(role) or (spellings[style] if style < len(spellings) else None)
        if usual is not None:
            names[role] = usual
    return names


def _norms(layer: Layer, parts: Parts, family: Family, config: Mapping[str, Plain], habits: Habits) -> Iterator[str]:
    kind = layer.attention.kind
    stored = {role for role, piece in parts.norms.items() if piece.weight is not None} | set(parts.norm_rows)
    needed = set() if family.generic else set(family.required_norms)
    if kind == "full" and family.qk_norm is not None:
        needed |= {"q", "k"}
    for role, switch in family.norm_switch.items():
        on = not is_true(config, switch[1:], False) if switch.startswith("!") else is_true(config, switch, False)
        if not on or not config:
            needed.discard(role)
    if not stored.isdisjoint({"q", "k"}):
        needed |= {"q", "k"}
    # where a norm follows each block too, post_attention is the attention's
    behind = {"post_attention"} if "post_feedforward" in family.norms else set()
    if kind == "dropped":
        needed -= _BEFORE_ATTENTION | behind
    if layer.mlp.kind == "dropped":
        needed -= _BEFORE_MLP - behind
    dropped = kind == "dropped" or layer.mlp.kind == "dropped"
    for role, names in family.norms.items():
        usual = habits.norms.get((kind, role))
        if role in stored or not (role in needed or (usual is not None and not dropped)):
            continue
        yield f"{usual or names[0]}.weight"
