"""``gqaprune`` from end to end: check the parent, score, plan, cut, refit, write beside, check, move into place."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch

from gqacheck import __version__
from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import UsageError
from gqacheck.geometry.outcomes import Perplexity
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.place import check_destination
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Finding, Severity
from gqacheck.runtime.configure import one_line
from gqacheck.runtime.corpus import load_corpus
from gqacheck.runtime.quiet import quiet_and_offline
from gqacheck.text import printable
from pruners.anatomy import CannotPrune, dissect
from pruners.choose import Found, Text, calibrate, choose, same_text, text_words
from pruners.order import Order
from pruners.plan import PruningPlan
from pruners.plan_file import read_plan
from pruners.reconstruction import reconstruct
from pruners.save import LABEL, PLAN_LABEL, Progress, Saved, save_plan, save_pruned, stored_dtype
from pruners.surgery import prune

OF_A_RUN = ("GQA702", "GQA703")
"""What the parent may be as guilty of: infinite logits, or a perplexity that no language model has."""
_LOG_FOLDER = "prune_log"


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Everything that one run did.

    scored: how the plan was found, a clause. notes: in sentences. before, after: perplexities of the parent and of what
    was written. saved: None on a dry run. refitted: what least squares did, a clause. complaint: why OUT was not
    written or should not be used, "" when all is well.
    """

    base: str
    out: str
    plan: PruningPlan
    scored: str
    notes: tuple[str, ...] = ()
    before: tuple[Perplexity, ...] = ()
    after: tuple[Perplexity, ...] = ()
    saved: Saved | None = None
    refitted: str = ""
    complaint: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    plan_saved: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)


def prune_checkpoint(order: Order, progress: Progress | None = None) -> PruneReport:
    """Cuts the checkpoint ``order.base`` and writes ``order.out``, unless the check of the result finds errors.

    Raises:
        UsageError: the order makes no sense (``out`` exists, a plan for another model, ranges reversed).
        CannotPrune: the parent is broken already, or of a kind that is not cut here.
        GqacheckError: whatever else stopped it; nothing was written.
    """
    with _log_folder(order):
        return _prune_checkpoint(order, progress)


def _prune_checkpoint(order: Order, progress: Progress | None) -> PruneReport:
    started = perf_counter()
    _check_places(order)
    parent = _sound_parent(order.base)
    checkpoint = parent.checkpoint
    assert checkpoint is not None
    if not order.dry_run:
        check_destination(order.out, [_place_of(checkpoint)], label=LABEL)
    plan = None if order.plan_file is None else read_plan(order.plan_file)
    model, tokenizer, notes = _load(order)
    try:
        report = _run(order, _Parent(checkpoint, model, tokenizer), plan, notes, progress)
    except torch.OutOfMemoryError as error:
        raise CannotPrune(
            f"there is not enough memory on {order.device} ({one_line(error)}): --device cpu has more, --seq-len and "
            "--method l2 need less"
        ) from error
    return replace(report, notes=(*dict.fromkeys(notes),), seconds=perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Parent:
    """What is pruned: as it is stored, and live."""

    checkpoint: Checkpoint
    model: Any
    tokenizer: Any


def _run(
    order: Order, parent: _Parent, plan: PruningPlan | None, notes: list[str], progress: Progress | None
) -> PruneReport:
    """The plan, and what is made of it."""
    if plan is not None:
        plan.require_fit(dissect(parent.model).shape)
    text = calibrate(order, parent.tokenizer)
    notes += same_text(order)
    with quiet_and_offline():
        if plan is not None:
            found = Found(plan, f"as {printable(order.plan_file, 80)} says")
        else:
            found = choose(order, parent.model, text.score, progress)
    notes += found.notes
    made = _made(order, text)
    report = PruneReport(order.base, order.out, found.plan, found.scored + text_words(order, text), asked=made)
    if order.save_plan is not None:
        save_plan(order.save_plan, found.plan, made)
        report = replace(report, plan_saved=order.save_plan)
    first = _measured(order, progress) if order.before else None
    report = replace(report, before=_perplexities(first, order, notes))
    return report if order.dry_run else _carry_out(order, report, parent, text.refit, first, notes, progress)


def _check_places(order: Order) -> None:
    """Nothing, when what is named can be written; before anything is read, since weights may take minutes."""
    sources = [order.base] if os.path.exists(order.base) else []
    if order.save_plan is not None:
        check_destination(order.save_plan, sources, label=PLAN_LABEL, file=True)
        if order.out and os.path.realpath(order.save_plan) == os.path.realpath(order.out):
            raise UsageError(f"{PLAN_LABEL} and OUT are both {printable(order.out)}: name another file for the plan")
    for text in dict.fromkeys((*order.before, *order.after)):
        load_corpus(text)
    if order.dry_run:
        return
    check_destination(order.out, sources, label=LABEL)


@contextmanager
def _log_folder(order: Order) -> Iterator[None]:
    """``prune_log``, made as LLM-Pruner makes it where OUT goes there, and gone again when nothing came of it."""
    made = not order.dry_run and os.path.dirname(order.out) == _LOG_FOLDER and not os.path.lexists(_LOG_FOLDER)
    if made:
        os.mkdir(_LOG_FOLDER)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty: OUT is in it
                os.rmdir(_LOG_FOLDER)


def _place_of(checkpoint: Checkpoint) -> str:
    return checkpoint.root if os.path.isdir(checkpoint.path) else checkpoint.path


def _sound_parent(base: str) -> CheckpointReport:
    """The static check of the parent.

    Raises:
        CannotPrune: it cannot be read, or it is broken already.
    """
    report = check_path(base, Options())
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CannotPrune(
            f"{printable(base)} is broken already: {errors[0].code} {printable(errors[0].message, 300)}{more}; mend it "
            f"first (gqacheck {printable(base)} tells all)"
        )
    if report.error is not None or report.checkpoint is None:
        raise CannotPrune(report.error or f"{printable(base)} cannot be read")
    if report.checkpoint.quantization is not None:
        raise CannotPrune(
            f"{printable(base)} is quantised ({report.checkpoint.quantization}): prune the model it was made of"
        )
    return report


def _load(order: Order) -> tuple[Any, Any, list[str]]:
    from gqacheck.runtime.load import load_model

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model, tokenizer = load_model(order.base, device=order.device)
    said = [str(each.message) for each in heard if str(each.message).startswith("load_model: ")]
    return model.eval(), tokenizer, [text.removeprefix("load_model: ") for text in said]


def _carry_out(
    order: Order,
    report: PruneReport,
    parent: _Parent,
    batches: torch.Tensor | None,
    first: CheckpointReport | None,
    notes: list[str],
    progress: Progress | None,
) -> PruneReport:
    """The cut, the refit, the folder and its check."""
    plan = report.plan
    with quiet_and_offline():
        child, refitted = _cut(order, parent.model, plan, batches, progress)
    usual, said = stored_dtype(parent.checkpoint)
    dtype = usual if order.dtype in (None, "auto") else order.dtype
    notes += [said] if said and order.dtype in (None, "auto") else []

    def check(folder: str) -> tuple[CheckpointReport, tuple[Finding, ...]]:
        options = Options(
            base=order.base, ppl=order.after, device=order.eval_device, seed=order.seed, progress=progress
        )
        found = check_path(folder, options)
        errors = [finding for finding in found.findings if finding.severity is Severity.ERROR]
        if any(finding.code in OF_A_RUN for finding in errors):  # the parent may be as bad on this text
            theirs = first if first is not None and order.before == order.after else _measured(order, progress)
            known = {finding.code for finding in theirs.findings if finding.code in OF_A_RUN}
            shared = [finding.code for finding in errors if finding.code in known]
            notes.extend(f"{code} is true of {printable(order.base)} too: it is not the cut's" for code in shared)
            errors = [finding for finding in errors if finding.code not in known]
        return found, tuple(errors)

    saved = save_pruned(
        child,
        order.out,
        source=parent.checkpoint,
        dtype=dtype or usual,
        plan=plan,
        made={**report.asked, "refitted": refitted},
        like=order.like,
        check=check,
        force=order.force,
        progress=progress,
    )
    notes += saved.written.notes
    unknown = _unmeasured(order, saved.check)
    code = 1 if saved.errors else 3 if unknown else 0
    return replace(
        report,
        saved=saved,
        refitted=refitted,
        after=saved.check.runtime.perplexities if saved.check.runtime is not None else (),
        complaint=_complaint(saved, order.out) if saved.errors else unknown,
        exit_code=code,
    )


def _cut(
    order: Order, model: Any, plan: PruningPlan, batches: torch.Tensor | None, progress: Progress | None
) -> tuple[Any, str]:
    """The child, and what least squares did, one clause."""
    if not order.reconstruct:
        return prune(model, plan), ""
    assert batches is not None
    if progress is not None:
        progress("refit", 0, 1)
    child = prune(copy.deepcopy(model), plan)
    told = reconstruct(child, model, plan, batches).told
    if progress is not None:
        progress("refit", 1, 1)
    return child, told


def _unmeasured(order: Order, check: CheckpointReport) -> str:
    """Why the perplexity that was asked for is not known, "" when it is."""
    if not order.after or (check.runtime is not None and check.runtime.perplexities):
        return ""
    why = next((claim.reason for claim in check.claims if claim.name == "runtime"), "")
    return f"{printable(order.out)} was written, and its perplexity could not be measured: {why}"


def _complaint(saved: Saved, out: str) -> str:
    first = f"{saved.errors[0].code} {printable(saved.errors[0].message, 300)}"
    if saved.placed:
        return f"the check of {printable(out)} found {first}; it stays where it is because of --force"
    return f"the check of what was cut found {first}; {printable(out)} was not written (--force keeps it)"


def _measured(order: Order, progress: Progress | None) -> CheckpointReport:
    """The parent, run on the texts of the tests."""
    corpora = order.before or order.after
    return check_path(order.base, Options(ppl=corpora, device=order.eval_device, seed=order.seed, progress=progress))


def _perplexities(report: CheckpointReport | None, order: Order, notes: list[str]) -> tuple[Perplexity, ...]:
    """Perplexities of the parent; what stops them is said and stops nothing else."""
    if report is None:
        return ()
    if report.runtime is None or not report.runtime.perplexities:
        why = next((claim.reason for claim in report.claims if claim.name == "runtime"), "") or report.error or ""
        notes.append(f"the perplexity of {printable(order.base)} was not measured: {why}")
        return ()
    return report.runtime.perplexities


def _made(order: Order, text: Text) -> dict[str, Any]:
    """How the plan was found, for pruning_plan.json: nothing of this machine's paths."""
    made: dict[str, Any] = {"by": f"gqaprune {__version__}", "seed": order.seed}
    if order.ask is not None:
        made |= order.ask.told()
    else:
        made["plan"] = os.path.basename(order.plan_file or "")
    if text.fingerprint:
        made["calibration"] = {
            "text": os.path.basename(order.calibration) or order.calibration,
            "sha256": text.fingerprint,
            "examples": 0 if text.score is None else len(text.score),
            "refit_examples": 0 if text.refit is None else len(text.refit),
            "tokens": order.seq_len,
        }
    made["reconstruct"] = order.reconstruct
    return made
