"""The three claims of a report (shapes, pairing, runtime), each with its state and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gqacheck.geometry.facts import Geometry, Layer, Subject
from gqacheck.geometry.origins import NOWHERE, LayerOrigin, Lineage
from gqacheck.geometry.outcomes import RuntimeFacts
from gqacheck.result import ClaimResult, ClaimState
from gqacheck.rules.heads import full_layers, is_guess
from gqacheck.rules.origins import needs_lineage, undecided, undecided_mlp
from gqacheck.rules.rule import Finding, Rule, Severity, Skipped
from gqacheck.rules.run import NEEDS_REPAIR, NEEDS_SELECTION
from gqacheck.rules.suspect import fit_words
from gqacheck.text import printable

REQUIRABLE = ("shapes", "pairing", "runtime", "ppl", "generation", "consistency")
"""What ``--require`` may insist on: the claims, and parts of the last: what was really measured, sampled, compared."""
NO_PROOF = frozenset(("GQA504",))
"""Pairing rules that can cast doubt and never settle anything."""
GUESSED = "head_dim was guessed, so heads may have been told apart wrongly: give --head-dim N or --config FILE"


def shapes_claim(
    subject: Subject, rules: Sequence[Rule], findings: Sequence[Finding], skipped: Sequence[Skipped]
) -> ClaimResult:
    """Fails on any error of a static rule; passes only when the rules that decide it could all run."""
    static = {rule.code for rule in rules if rule.claim not in ("pairing", "runtime")}
    not_run = {skip.code for skip in skipped}
    n_run = len(static - not_run)
    broken = [f for f in findings if f.code in static and f.severity is Severity.ERROR]
    if broken:
        return ClaimResult("shapes", ClaimState.FAIL, _errors(broken), n_run)
    doubt = _shapes_doubt(subject, static, skipped)
    if doubt:
        return ClaimResult("shapes", ClaimState.NOT_CHECKED, doubt, n_run)
    waived = [skip for skip in skipped if skip.code in static and skip.needs == NEEDS_SELECTION]
    return ClaimResult("shapes", ClaimState.PASS, f"without {_codes(waived)} (--ignore)" if waived else "", n_run)


def _shapes_doubt(subject: Subject, static: set[str], skipped: Sequence[Skipped]) -> str:
    """Why the absence of errors proves nothing here, "" when it does."""
    geometry = subject.geometry
    needs = {skip.needs for skip in skipped if skip.code in static}
    if not geometry.layers:
        return "no decoder layers were found"
    if subject.checkpoint.quantization is not None:
        return f"the weights are packed ({subject.checkpoint.quantization}), so their shapes say nothing of the heads"
    if geometry.family.attention == "mla" or any(layer.attention.kind == "mla" for layer in geometry.layers):
        return "latent attention (MLA) has no KV heads to count; only the other rules ran"
    if geometry.family.generic:
        return "the model family is not known: rules went by tensor names, and nothing was called an error"
    if doubt := heads_doubt(geometry):
        return doubt
    if NEEDS_REPAIR in needs:
        return "a rule failed: " + _codes(skip for skip in skipped if skip.needs == NEEDS_REPAIR)
    if not static - {skip.code for skip in skipped}:
        return "no rule could run"
    if any(skip.needs == NEEDS_SELECTION and "--select" in skip.reason for skip in skipped if skip.code in static):
        n = sum(1 for skip in skipped if skip.code in static and skip.needs == NEEDS_SELECTION)
        return f"{n} of {len(static)} rules were not selected"
    return ""


def heads_doubt(geometry: Geometry) -> str:
    """Why the heads of some layer cannot be counted, "" when those of all can."""
    unknown = [layer.index for layer in geometry.layers if _heads_unknown(layer)]
    if not unknown:
        return ""
    where = "" if len(unknown) == len(geometry.layers) else f" in {len(unknown)} of {len(geometry.layers)} layers"
    return f"head_dim is not known{where}, so heads cannot be counted: give --config config.json or --head-dim N"


def heads_unknown(geometry: Geometry) -> bool:
    """Whether no layer says how wide a head is: then the question of this tool cannot be answered at all."""
    full = [layer for layer in geometry.layers if layer.attention.kind == "full"]
    return bool(full) and all(_heads_unknown(layer) for layer in full)


def _heads_unknown(layer: Layer) -> bool:
    return layer.attention.kind == "full" and layer.attention.head_dim is None


def pairing_claim(subject: Subject, findings: Sequence[Finding] = (), skipped: Sequence[Skipped] = ()) -> ClaimResult:
    """Fails on any error of a pairing rule; passes only when the parent's weights decided about every layer.

    The rules that count are those of claim ``pairing`` in ``RULES`` but for ``NO_PROOF``; ``skipped`` names those of
    them that did not run.
    """
    from gqacheck.rules import RULES

    why = _not_compared(subject)
    if why:
        return ClaimResult("pairing", ClaimState.NOT_CHECKED, why + fit_words(subject.pairing_fit))
    codes = {rule.code for rule in RULES if rule.claim == "pairing"} - NO_PROOF
    mine = [skip for skip in skipped if skip.code in codes]
    n_run = len(codes - {skip.code for skip in mine})
    layers = _compared_layers(subject)
    broken = [f for f in findings if f.code in codes and f.severity is Severity.ERROR]
    if broken:
        extent = f"{sum(not why for why in layers.values())} of {_layers(len(layers))} compared"
        return ClaimResult("pairing", ClaimState.FAIL, f"{_errors(broken)}; {extent}", n_run)
    doubt = _pairing_doubt(subject, layers, codes, findings, mine)
    if doubt:
        return ClaimResult("pairing", ClaimState.NOT_CHECKED, doubt, n_run)
    parts = [_pairing_proof(subject, len(layers))]
    waived = [skip for skip in mine if skip.needs == NEEDS_SELECTION]
    if waived:
        parts.append(f"without {_codes(waived)} (--ignore)")
    return ClaimResult("pairing", ClaimState.PASS, "; ".join(parts), n_run)


def _not_compared(subject: Subject) -> str:
    """Why nothing is known of any pair, "" when the weights were compared with the parent's."""
    lineage = subject.lineage
    if lineage is None and subject.base is None:
        return "shapes cannot show which KV head a query head was trained with; give --base PARENT (or --base auto)"
    if lineage is None:
        return (
            "the parent's counts were compared, its weights were not; only they show which KV head a query head was "
            "trained with"
        )
    missing = needs_lineage(subject)
    return missing[1] if missing is not None else ""


def _compared_layers(subject: Subject) -> dict[int, str]:
    """Each layer with softmax attention -> why its pairs could not all be judged, "" when they were."""
    lineage = subject.lineage
    known = {layer.index: layer for layer in lineage.layers} if lineage is not None else {}
    full = [layer for layer, _ in full_layers(subject)]
    if lineage is not None and lineage.relation == "identical" and not known:
        return {layer.index: "" for layer in full}
    return {
        layer.index: undecided(known[layer.index]) or _mlp_left(layer, known[layer.index])
        if layer.index in known
        else "it was not compared"
        for layer in full
    }


def _mlp_left(layer: Layer, origin: LayerOrigin) -> str:
    """Why not the whole MLP of the layer was compared, "" when it was."""
    if layer.mlp.kind not in ("gated", "plain", "moe"):
        return ""
    if not origin.mlps:
        return "its MLP was not compared"
    stored = layer.mlp.n_experts_stored if layer.mlp.kind == "moe" else None
    n = sum(isinstance(mlp.expert, int) for mlp in origin.mlps)
    return f"{n} of its {stored} experts were compared" if stored is not None and n < stored else ""


def _pairing_doubt(
    subject: Subject,
    layers: Mapping[int, str],
    codes: set[str],
    findings: Sequence[Finding],
    skipped: Sequence[Skipped],
) -> str:
    """Why the absence of errors proves nothing here, "" when it does."""
    if not layers:
        return "no layer has softmax attention with KV heads to pair"
    if subject.geometry.family.generic:
        return "the model family is not known: rules went by tensor names, and nothing was called an error"
    crashed = [skip for skip in skipped if skip.needs == NEEDS_REPAIR]
    if crashed:
        return f"a rule failed: {_codes(crashed)}"
    left_out = [skip for skip in skipped if skip.needs == NEEDS_SELECTION]
    unselected = [skip for skip in left_out if "--select" in skip.reason]
    if unselected:
        return f"{len(unselected)} of {len(codes)} rules were not selected"
    if len(left_out) == len(codes):
        return "no rule could run"
    doubts = {index: why for index, why in layers.items() if why}
    if doubts:
        index, why = next(iter(doubts.items()))
        extent = f"{len(layers) - len(doubts)} of {_layers(len(layers))} compared"
        return f"{extent}: layer {index}: {why}{_numpy_hint(subject, why)}"
    if any(is_guess(attention.head_dim) for _, attention in full_layers(subject)):
        return GUESSED
    return next((f"layer {index}: {why}" for index, why in _mlps_elsewhere(subject).items() if why), "")


def undecided_layers(subject: Subject) -> dict[int, str]:
    """Layers whose weights could not all be told from the parent's, each with the reason."""
    found = _compared_layers(subject)
    for layer, attention in full_layers(subject):
        if is_guess(attention.head_dim) and not found[layer.index]:
            found[layer.index] = GUESSED
    found |= _mlps_elsewhere(subject)
    return {index: found[index] for index in sorted(found) if found[index]}


def _mlps_elsewhere(subject: Subject) -> dict[int, str]:
    """Layers without softmax attention (linear, dropped) -> why their MLP could not be judged, "" when it was."""
    known = {layer.index: layer for layer in subject.lineage.layers} if subject.lineage is not None else {}
    return {
        layer.index: undecided_mlp(known[layer.index]) or _mlp_left(layer, known[layer.index])
        for layer in subject.geometry.layers
        if layer.attention.kind != "full" and layer.index in known
    }


def _numpy_hint(subject: Subject, why: str) -> str:
    """What to install, when that was what kept the weights from being compared and ``why`` does not say it."""
    notes = subject.lineage.notes if subject.lineage is not None else ()
    hint = next((printable(note, 200) for note in notes if "[lineage]" in note), "")
    return f" ({hint})" if hint and "[lineage]" not in why else ""


def _pairing_proof(subject: Subject, n_layers: int) -> str:
    """What stands behind a pass: how many layers, how they were told, and what was left alone by right."""
    lineage = subject.lineage
    assert lineage is not None
    parts = [f"{_layers(n_layers)} compared; query heads read their own KV heads"]
    rewritten = sum(layer.o is not None and layer.o.state == "rewritten" for layer in lineage.layers)
    if rewritten:
        parts.append(f"o_proj was rewritten in {_layers(rewritten)}, so its columns name no head")
    if lineage.method == "similarity":
        cosines = [
            origin.similarity
            for layer in lineage.layers
            for heads in (layer.q, layer.k, layer.v, layer.o)
            if heads is not None and heads.told
            for origin in heads.origins
            if origin.similarity is not None
        ]
        least = f" (cosine {min(cosines):.3f} at least)" if cosines else ""
        parts.append(f"told by similarity where bits differ{least}")
        untold, total = _untold_channels(lineage)
        if untold:
            parts.append(f"{untold} of {total} channels could not be told")
    return "; ".join(parts)


def _untold_channels(lineage: Lineage) -> tuple[int, int]:
    """Channels that similarity left open, and all that it was asked about."""
    told = [
        channels
        for layer in lineage.layers
        for mlp in layer.mlps
        for channels in (mlp.gate, mlp.up, mlp.down)
        if channels is not None and channels.state == "similar"
    ]
    return sum(c.parents.count(NOWHERE) for c in told), sum(len(c.parents) for c in told)


def _layers(n: int) -> str:
    return f"{n} layer{'s' if n != 1 else ''}"


def runtime_claim(
    asked: bool, facts: RuntimeFacts | None, problem: str, findings: Sequence[Finding], n_rules: int
) -> ClaimResult:
    """Passes only when the model ran and a perplexity was measured; ``problem`` says why it did not run."""
    broken = [f for f in findings if f.severity is Severity.ERROR]
    if broken:
        return ClaimResult("runtime", ClaimState.FAIL, "; ".join(filter(None, (_errors(broken), problem))), n_rules)
    if not asked:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, "not asked for (--ppl runs the model)")
    if problem:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, problem)
    if facts is None or not n_rules:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, "no runtime rule judged what it did")
    wanted = facts.asked or frozenset(("ppl",))
    ptb = [f for f in findings if f.code in ("GQA703", "GQA704")]
    if ptb and _ptb_alone(facts):
        reason = f"{_codes(ptb)} on PTB, which alone proves nothing: measure wikitext2 or a text of your own, too"
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, reason, n_rules)
    missing = [name for name in PARTS if name in wanted and not measured(facts, name)]
    if missing:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, f"not measured: {', '.join(missing)}", n_rules)
    not_run = [PARTS[name] for name in PARTS if name not in facts.asked]
    said = f"not run: {', '.join(not_run)} (--all-runtime)" if not_run and facts.asked else ""
    return ClaimResult("runtime", ClaimState.PASS, said, n_rules)


PARTS = {"ppl": "perplexity", "generation": "generation", "consistency": "consistency"}
"""What a run can consist of, by the name that ``--require`` has for it."""


def measured(facts: RuntimeFacts | None, name: str) -> bool:
    """Whether a part of a run was really done: of perplexity, beside the base that was given; of consistency, that
    something was compared."""
    if facts is None:
        return False
    if name == "ppl":
        return bool(facts.perplexities) and not facts.base_problem
    if name == "generation":
        return facts.generation is not None
    return facts.consistency is not None and any(not one.skipped for one in facts.consistency.comparisons)


def _ptb_alone(facts: RuntimeFacts | None) -> bool:
    return facts is not None and bool(facts.perplexities) and all(one.is_ptb for one in facts.perplexities)


def unmet(required: Iterable[str], claims: Sequence[ClaimResult], facts: RuntimeFacts | None) -> tuple[str, ...]:
    """One sentence per required thing that was not checked."""
    states = {claim.name: claim for claim in claims}
    sentences = []
    for name in dict.fromkeys(required):
        claim = states["runtime" if name in PARTS else name]
        if name in PARTS:
            asked = facts is None or not facts.asked or name in facts.asked
            checked = measured(facts, name) or (claim.state is ClaimState.FAIL and asked)
            if name == "ppl" and claim.state is ClaimState.NOT_CHECKED and _ptb_alone(facts):
                checked = False
        else:
            checked = claim.state is not ClaimState.NOT_CHECKED
        if not checked:
            sentences.append(f"--require {name}: not checked: {claim.reason}")
    return tuple(sentences)


def _errors(findings: Sequence[Finding]) -> str:
    n = len(findings)
    return f"{n} error{'s' if n != 1 else ''}: {_codes(findings)}"


def _codes(items: Iterable[Finding | Skipped]) -> str:
    return ", ".join(dict.fromkeys(item.code for item in items))
