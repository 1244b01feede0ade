"""The one pipeline that the command line, the plugin and the API (``api``) call: open, measure, judge, run if asked.

Nothing here prints. What could not be checked is a report that says so, never an exception; only a request that
makes no sense raises (``UsageError``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.claims import heads_doubt, heads_unknown, pairing_claim, runtime_claim, shapes_claim, unmet
from gqacheck.errors import GqacheckError, MissingDependency, UsageError, reason_of
from gqacheck.geometry.facts import Geometry, Measured, Subject
from gqacheck.geometry.origins import Lineage, PairingFit
from gqacheck.geometry.outcomes import RuntimeFacts
from gqacheck.options import Options
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules.heads import is_guess
from gqacheck.rules.rule import Finding, Rule, Severity, Skipped
from gqacheck.rules.run import NEEDS_REPAIR, choose_rules, run_rules

if TYPE_CHECKING:
    from gqacheck.lineage.pair import Samples

UNRUNNABLE = frozenset(
    ("GQA012", "GQA014", "GQA101", "GQA102", "GQA103", "GQA104", "GQA106", "GQA107", "GQA109", "GQA110", "GQA111",
     "GQA301", "GQA302", "GQA303", "GQA304", "GQA305", "GQA402", "GQA409", "GQA410")
)  # fmt: skip
"""Rules whose errors mean that no model can be built from the tensors, so running it would only repeat them.

Stale attributes (GQA2xx) and a config that does not match (GQA4xx) are not here: the rebuild goes by the tensors.
"""
PAIRING_ERRORS = frozenset(("GQA601", "GQA602", "GQA603", "GQA604", "GQA605", "GQA608"))
"""Rules whose errors mean that parts stand together that were not trained together; a run then says what that costs."""


def check_path(path: str, options: Options) -> CheckpointReport:
    """``check`` with its options already in one value."""
    from gqacheck.formats import open_checkpoint

    return check_opened(path, lambda: Opened(open_checkpoint(path, config=options.config)), options)


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint; for a live model also how sampled lines of its weights are read, the module and its tokenizer."""

    checkpoint: Checkpoint
    samples: Samples | None = None
    live: Any = None
    tokenizer: Any = None


def check_opened(
    path: str, opener: Callable[[], Opened], options: Options, live_base: Opened | None = None
) -> CheckpointReport:
    """``check_path`` of what ``opener`` gives, beside a live parent when there is one."""
    from gqacheck.rules import RULES

    rules, left_out = choose_rules(RULES, options.select, options.ignore)
    started = perf_counter()
    checkpoint: Checkpoint | None = None
    try:
        opened = opener()
        checkpoint = opened.checkpoint
        geometry = _measure(checkpoint, options.family, options.head_dim)
        base = _open_base(options.base, checkpoint, live_base)
        geometry = _with_heads_of(base, checkpoint, geometry, options)
        base = _base_with_heads_of(geometry, base)
        lineage = _trace(opened, geometry, base, live_base, options)
        fit = _fit_pairing(opened, geometry, lineage, rules, options)
        modules = _Modules(opened.live, opened.tokenizer, live_base.live if live_base is not None else None)
        report = _judge(path, checkpoint, geometry, base, lineage, fit, rules, left_out, options, started, modules)
    except UsageError:
        raise
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        return CheckpointReport(
            path, Verdict.ERROR, 3, checkpoint, error=reason_of(error), seconds=perf_counter() - started
        )
    return report


@dataclass(frozen=True, slots=True)
class _Modules:
    """The live modules of a check; None where a file is checked."""

    model: Any = None
    tokenizer: Any = None
    base: Any = None


def _measure(checkpoint: Checkpoint, family: str | None, head_dim: int | None, **more: str) -> Geometry:
    from gqacheck.geometry.measure import measure

    return measure(checkpoint, family=family, head_dim=head_dim, **more)


def _open_base(path: str | None, child: Checkpoint, live: Opened | None) -> CheckpointReport | None:
    """The parent, measured and not judged. A parent that cannot be read stops the check: it was asked for."""
    if path is None and live is None:
        return None
    from gqacheck.errors import ReadError
    from gqacheck.formats import open_checkpoint
    from gqacheck.formats.parent import AUTO, find_parent

    started = perf_counter()
    notes: tuple[str, ...] = ()
    if path == AUTO and not os.path.exists(AUTO):
        path, where = find_parent(child)
        notes = (where,)
    try:
        checkpoint = live.checkpoint if live is not None else open_checkpoint(path or "")
        geometry = _measure(checkpoint, None, None)
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        raise ReadError(f"--base: {reason_of(error)}") from error
    name = path or "live model"
    return CheckpointReport(name, Verdict.PASS, 0, checkpoint, geometry, notes=notes, seconds=perf_counter() - started)


def _with_heads_of(
    base: CheckpointReport | None, checkpoint: Checkpoint, geometry: Geometry, options: Options
) -> Geometry:
    """The geometry, measured with the parent's head_dim where nothing in the checkpoint says one."""
    if base is None or base.geometry is None or not heads_unknown(geometry):
        return geometry
    known = {known.value for known in _head_dims(base.geometry) if known}
    return _measure(checkpoint, options.family, known.pop(), said_by="the base") if len(known) == 1 else geometry


def _base_with_heads_of(geometry: Geometry, base: CheckpointReport | None) -> CheckpointReport | None:
    """The parent, measured with the child's head_dim where its own is a guess at best."""
    if base is None or base.checkpoint is None or base.geometry is None:
        return base
    said = {known.value for known in _head_dims(geometry) if known is not None and not is_guess(known)}
    if len(said) != 1 or any(known is not None and not is_guess(known) for known in _head_dims(base.geometry)):
        return base
    return replace(base, geometry=_measure(base.checkpoint, None, said.pop(), said_by="the checkpoint"))


def _head_dims(geometry: Geometry) -> list[Measured | None]:
    return [layer.attention.head_dim for layer in geometry.layers if layer.attention.kind == "full"]


def _trace(
    opened: Opened, geometry: Geometry, base: CheckpointReport | None, live_base: Opened | None, options: Options
) -> Lineage | None:
    """Where the weights came from in the parent's; what stops the comparison is said in the result."""
    if base is None or base.checkpoint is None or base.geometry is None:
        return None
    from gqacheck.lineage.trace import trace_lineage

    try:
        return trace_lineage(
            opened.checkpoint,
            geometry,
            base.checkpoint,
            base.geometry,
            child_samples=opened.samples,
            parent_samples=live_base.samples if live_base is not None else None,
            progress=options.progress,
        )
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        return Lineage("not-compared", reason_of(error))


def _fit_pairing(
    opened: Opened, geometry: Geometry, lineage: Lineage | None, rules: Sequence[Rule], options: Options
) -> PairingFit | None:
    """What the weights say without a parent; None where nobody asked, or where the parent's weights have answered."""
    if not options.values or (lineage is not None and lineage.compared) or not any(r.code == "GQA504" for r in rules):
        return None
    from gqacheck.lineage.values import fit_pairing

    try:
        return fit_pairing(opened.checkpoint, geometry, samples=opened.samples, progress=options.progress)
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        return PairingFit("failed", reason_of(error))


def _judge(
    path: str,
    checkpoint: Checkpoint,
    geometry: Geometry,
    base: CheckpointReport | None,
    lineage: Lineage | None,
    fit: PairingFit | None,
    rules: Sequence[Rule],
    left_out: tuple[Skipped, ...],
    options: Options,
    started: float,
    modules: _Modules,
) -> CheckpointReport:
    """The report on what was read; its ``seconds`` are those of the static check, a run counts its own."""
    parent = None
    stranger = lineage is not None and lineage.stranger
    if base is not None and base.checkpoint is not None and base.geometry is not None and not stranger:
        parent = Subject(base.checkpoint, base.geometry)
    subject = Subject(checkpoint, geometry, base=parent, expect=options.expect, lineage=lineage, pairing_fit=fit)
    static = [rule for rule in rules if rule.claim != "runtime"]
    findings, skipped = run_rules(subject, static, tolerant=True)
    seconds = perf_counter() - started - sum(part.seconds for part in (lineage, fit) if part is not None)
    running = [rule for rule in rules if rule.claim == "runtime"]
    run = _run(subject, findings, running, options, modules)
    findings = _in_order(findings + run.findings)
    skipped = tuple(sorted(left_out + skipped + run.skipped, key=lambda skip: skip.code))

    claims = (
        shapes_claim(subject, [*static, *_rules_of(left_out, static=True)], findings, skipped),
        pairing_claim(subject, findings, skipped),
        runtime_claim(options.runs, run.facts, run.problem or run.blocked, run.findings, run.n_rules),
    )
    missing = unmet(options.require, claims, run.facts)
    crashed = [skip for skip in skipped if skip.needs == NEEDS_REPAIR]
    problem = run.problem or (fit.reason if fit is not None and fit.verdict == "failed" else "")
    if not geometry.layers:
        problem = problem or "no decoder layers were found: the tensor names fit no known model family"
    elif heads_unknown(geometry) and checkpoint.quantization is None:
        problem = problem or heads_doubt(geometry)
    if crashed:
        problem = problem or f"{crashed[0].code}: {crashed[0].reason}"
    known = tuple(f.fingerprint for f in findings if f.fingerprint in options.known)
    failed = any(f.severity.rank >= options.fail_on.rank and f.fingerprint not in options.known for f in findings)
    could_not = bool(problem or missing)
    return CheckpointReport(
        path,
        Verdict.FAIL if failed else Verdict.ERROR if could_not else Verdict.PASS,
        3 if could_not else 1 if failed else 0,
        checkpoint,
        geometry,
        base=base,
        claims=claims,
        findings=findings,
        skipped=skipped,
        runtime=run.facts,
        lineage=lineage,
        error=problem or None,
        notes=missing,
        seconds=seconds,
        pairing_fit=fit,
        known=known,
    )


def _rules_of(skipped: Sequence[Skipped], *, static: bool) -> list[Rule]:
    from gqacheck.rules import RULES

    codes = {skip.code for skip in skipped}
    return [rule for rule in RULES if rule.code in codes and (rule.claim != "runtime") == static]


@dataclass(frozen=True, slots=True)
class _Run:
    """What running the model gave. ``blocked`` and ``problem`` say why it did not run; a problem is exit 3."""

    facts: RuntimeFacts | None = None
    findings: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    blocked: str = ""
    problem: str = ""
    n_rules: int = 0


def _run(
    subject: Subject, findings: Sequence[Finding], rules: Sequence[Rule], options: Options, modules: _Modules
) -> _Run:
    if not options.runs:
        return _Run(skipped=_skip(rules, "ppl", "running it was not asked for (--ppl, --generate, --consistency)"))
    stoppers = [f.code for f in findings if f.severity is Severity.ERROR and f.code in UNRUNNABLE]
    if stoppers:
        reason = f"not run: {', '.join(dict.fromkeys(stoppers))} would stop it"
        return _Run(skipped=_skip(rules, "runnable-model", reason), blocked=reason)
    try:
        facts = _run_model(subject, options, modules)
    except UsageError:
        raise
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        reason = reason_of(error)
        return _Run(skipped=_skip(rules, "runnable-model", reason), problem=reason)
    if facts.failure and facts.failure_stage == "tokenizer":
        return _Run(facts, skipped=_skip(rules, "tokenizer", facts.failure), problem=facts.failure)
    found, skipped = run_rules(replace(subject, runtime=facts), rules, tolerant=True)
    return _Run(facts, found, skipped, problem=facts.problem, n_rules=len(rules) - len(skipped))


def _run_model(subject: Subject, options: Options, modules: _Modules) -> RuntimeFacts:
    """The model run as asked; beside its base when there is one."""
    from gqacheck.rules import RULES

    try:
        from gqacheck.runtime.run import Request, run_check
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "gqacheck":
            raise
        raise MissingDependency("--ppl", "run") from error
    request = Request(
        corpora=options.ppl,
        generate=options.generate,
        consistency=options.consistency,
        tokenizer=options.tokenizer,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        batch_size=options.batch_size,
        seed=options.seed,
        limit=options.limit,
        stop_early=not options.no_early_stop,
        progress=options.progress,
        live=modules.model,
        live_base=modules.base,
        live_tokenizer=modules.tokenizer,
    )
    pairing, _ = run_rules(subject, [rule for rule in RULES if rule.code in PAIRING_ERRORS], tolerant=True)
    broken = any(finding.severity is Severity.ERROR for finding in pairing)  # --ignore changes no facts
    return run_check(subject, request, pairing_broken=broken)


def _skip(rules: Sequence[Rule], needs: str, reason: str) -> tuple[Skipped, ...]:
    return tuple(Skipped(rule.code, needs, reason) for rule in rules)


def _in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings before notes; inside, the order of the rules and of the layers."""
    return tuple(sorted(findings, key=lambda finding: -finding.severity.rank))
