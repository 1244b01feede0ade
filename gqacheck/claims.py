"""The three claims of a report (shapes, pairing, runtime), each with its state and the reason for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.geometry.facts import Geometry, Layer, RuntimeFacts, Subject
from gqacheck.result import ClaimResult, ClaimState
from gqacheck.rules.rule import Finding, Rule, Severity, Skipped
from gqacheck.rules.run import NEEDS_REPAIR, NEEDS_SELECTION

REQUIRABLE = ("shapes", "pairing", "runtime", "ppl")
"""What ``--require`` may insist on: the claims, and ``ppl`` for a perplexity that was really measured."""


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
    unknown = [layer.index for layer in geometry.layers if _heads_unknown(layer)]
    if unknown:
        where = "" if len(unknown) == len(geometry.layers) else f" in {len(unknown)} of {len(geometry.layers)} layers"
        return f"head_dim is not known{where}, so heads cannot be counted: give --config config.json or --head-dim N"
    if NEEDS_REPAIR in needs:
        return "a rule failed: " + _codes(skip for skip in skipped if skip.needs == NEEDS_REPAIR)
    if not static - {skip.code for skip in skipped}:
        return "no rule could run"
    if any(skip.needs == NEEDS_SELECTION and "--select" in skip.reason for skip in skipped if skip.code in static):
        n = sum(1 for skip in skipped if skip.code in static and skip.needs == NEEDS_SELECTION)
        return f"{n} of {len(static)} rules were not selected"
    return ""


def heads_unknown(geometry: Geometry) -> bool:
    """Whether no layer says how wide a head is: then the question of this tool cannot be answered at all."""
    full = [layer for layer in geometry.layers if layer.attention.kind == "full"]
    return bool(full) and all(_heads_unknown(layer) for layer in full)


def _heads_unknown(layer: Layer) -> bool:
    return layer.attention.kind == "full" and layer.attention.head_dim is None


def pairing_claim(subject: Subject) -> ClaimResult:
    """Not checked: counts are read, and only the parent's weights tell which KV head a query head was trained with."""
    if subject.base is None:
        reason = (
            "shapes cannot show which KV head a query head was trained with; "
            "comparing weights with the parent's is not in this version"
        )
    else:
        reason = (
            "the parent's counts were compared; only its weights show which KV head a query head was trained with, "
            "and comparing those is not in this version"
        )
    return ClaimResult("pairing", ClaimState.NOT_CHECKED, reason)


def runtime_claim(
    asked: bool, facts: RuntimeFacts | None, problem: str, findings: Sequence[Finding], n_rules: int
) -> ClaimResult:
    """Passes only when the model ran and a perplexity was measured; ``problem`` says why it did not run."""
    broken = [f for f in findings if f.severity is Severity.ERROR]
    if broken:
        return ClaimResult("runtime", ClaimState.FAIL, _errors(broken), n_rules)
    if not asked:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, "not asked for (--ppl runs the model)")
    if problem:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, problem)
    if facts is None or not facts.perplexities or not n_rules:
        return ClaimResult("runtime", ClaimState.NOT_CHECKED, "no runtime rule judged a perplexity")
    return ClaimResult("runtime", ClaimState.PASS, "", n_rules)


def unmet(required: Iterable[str], claims: Sequence[ClaimResult], facts: RuntimeFacts | None) -> tuple[str, ...]:
    """One sentence per required thing that was not checked."""
    states = {claim.name: claim for claim in claims}
    sentences = []
    for name in dict.fromkeys(required):
        claim = states["runtime" if name == "ppl" else name]
        if name == "ppl":
            checked = claim.state is ClaimState.FAIL or bool(facts and facts.perplexities)
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
