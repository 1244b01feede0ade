"""What a repair changes, in sentences: equal ones of several layers are one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.geometry.origins import NOWHERE
from gqacheck.repair.config import ConfigEdits
from gqacheck.repair.facts import Change, LayerPlan, RoleTake
from gqacheck.report.words import layer_ranges
from gqacheck.rules.rule import Finding

_BLOCKS = {"q": "query head", "k": "KV head", "v": "KV head", "o": "query head"}
_MOST_NAMED = 40
_ATTRIBUTES = ("GQA201", "GQA202", "GQA203", "GQA204", "GQA205", "GQA206", "GQA207")
_BY_WRITING = {
    "GQA013": "storages hold no more than their tensors",
    "GQA014": "the index goes with what the files hold",
    "GQA402": "layers are numbered from 0 without gaps",
}


def plan_changes(plans: Sequence[LayerPlan]) -> tuple[Change, ...]:
    """One sentence per kind of change to tensors, with the layers it is made in."""
    found: dict[str, list[int]] = {}
    for plan in plans:
        sentences = [plan.counts] if plan.counts else []
        weights = [take for take in plan.changed if take.kind == "weight"]
        for take in weights:
            beside = [t for t in plan.changed if t.kind != "weight" and (t.role, t.expert) == (take.role, take.expert)]
            sentences.append(_sentence(take, beside))
        alone = {(take.role, take.expert) for take in weights}
        for take in plan.changed:
            if take.kind != "weight" and (take.role, take.expert) not in alone:
                sentences.append(_sentence(take, ()))
        for sentence in _merged_experts(sentences, weights):
            found.setdefault(sentence, []).append(plan.index)
    return tuple(Change(sentence, tuple(layers)) for sentence, layers in found.items())


def _merged_experts(sentences: list[str], weights: Iterable[RoleTake]) -> list[str]:
    """Sentences as they are, or a count where a layer has more experts than anybody would read about."""
    experts = {take.expert for take in weights if take.expert is not None}
    if len(experts) <= 2:
        return sentences
    return [*(s for s in sentences if not s.startswith("expert ")), f"{len(experts)} experts: channels realigned"]


def _sentence(take: RoleTake, beside: Sequence[RoleTake]) -> str:
    name = f"{take.role}_proj" if take.kind == "weight" else f"{take.kind} of {take.role}_proj"
    if take.expert is not None:
        name = f"expert {take.expert} {name}"
    noun = _BLOCKS.get(take.role, "channel")
    parts = []
    if take.take.replaced:
        numbers = [take.take.parent[place] for place, own in enumerate(take.take.child) if own == NOWHERE]
        whole = take.take.replaced == len(take.take)
        which = f" {layer_ranges(numbers)}" if len(numbers) <= _MOST_NAMED and not whole else ""
        parts.append(f"{'all ' if whole else ''}{_count(len(numbers), noun)}{which} from the parent")
    if take.take.moved:
        parts.append(f"{_count(take.take.moved, noun)} moved")
    if not parts:
        parts.append(f"cut to {_count(len(take.take), noun)}")
    elif len(take.take) != take.before:
        parts.append(f"{take.before} become {len(take.take)}")
    if any(other.kind == "bias" for other in beside):
        parts.append("its bias too")
    if any(other.kind != "bias" for other in beside):
        parts.append(f"its {' and '.join(sorted({o.kind for o in beside} - {'bias'}))} too")
    why = f" ({take.whole})" if take.whole else ""
    return f"{name}: {', '.join(parts)}{why}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def config_changes(edits: ConfigEdits | None) -> tuple[Change, ...]:
    """One sentence per value of the config that changes."""
    return () if edits is None else tuple(Change(sentence) for sentence in edits.sentences)


def finding_changes(gone: Sequence[Finding], *, as_module: bool) -> tuple[Change, ...]:
    """What is mended by writing the checkpoint anew: attributes, storages, index, layer numbers."""
    codes = sorted({finding.code for finding in gone})
    changes = []
    if as_module:
        found = [finding for finding in gone if finding.code in _ATTRIBUTES]
        which = f" ({', '.join(code for code in codes if code in _ATTRIBUTES)})" if found else ""
        layers = sorted({layer for finding in found for layer in finding.layers})
        changes.append(
            Change(f"built anew with the stock class of {_transformers()}: attributes follow the weights{which}",
                   tuple(layers))
        )  # fmt: skip
    if as_module and "GQA405" in codes:
        changes.append(Change("written as one whole module, which may hold layers of different shape (GQA405)"))
    changes += [Change(f"{_BY_WRITING[code]} ({code})") for code in codes if code in _BY_WRITING]
    return tuple(changes)


def _transformers() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        return "transformers"
