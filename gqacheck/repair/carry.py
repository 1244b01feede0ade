"""A repair carried out: written beside the destination, verified there, and moved into place in one step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.geometry.measure import measure
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.repair.apply import Progress, apply_plan
from gqacheck.repair.blocks import Side
from gqacheck.repair.facts import CannotRepair, Reference, Refusal, RepairReport
from gqacheck.repair.integrity import compare_bytes
from gqacheck.repair.place import move_into_place, names_a_file, require_space, workplace
from gqacheck.repair.plan import RepairPlan
from gqacheck.repair.predict import Outlook, new_names, renumbered
from gqacheck.repair.verify import check_written, compare_with_reference
from gqacheck.repair.write import Written, find_homes, write_checkpoint
from gqacheck.result import CheckpointReport

_ROOM = 1 << 20
"""Bytes for headers, configs and tokenizers."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, what was found, and what is to be done about it."""

    path: str
    options: Options
    out: str | None
    child: Side
    parent: Side | None
    before: CheckpointReport
    plan: RepairPlan
    outlook: Outlook
    progress: Progress | None

    @property
    def as_module(self) -> bool:
        """Whether a whole module is written."""
        kind = self.child.checkpoint.container
        return kind is Container.MODULE or (kind is Container.FOLDER and bool(self.out and names_a_file(self.out)))


def carry_out(job: Job, report: RepairReport) -> RepairReport:
    """The report after the repaired checkpoint was written, verified and moved into place.

    Raises:
        CannotRepair: it cannot be built or written.
        MissingDependency: torch or transformers is not installed.
    """
    from gqacheck.runtime.running import require_run_extra

    require_run_extra("repair")
    assert job.out is not None
    with workplace(job.out) as work:
        require_space(work, _needed(job))
        written, notes = _write(job, job.out, work)
        after, reference, wrong = _verify(job, written, work)
        report = replace(
            report,
            after=replace(after, path=job.out),
            reference=reference,
            left_alone=(*report.left_alone, *notes, *written.notes),
        )
        if wrong:
            return replace(report, refused=tuple(Refusal(sentence) for sentence in wrong))
        size = _size(written.path)
        move_into_place(written.path, job.out)
    return replace(report, out=job.out, bytes_written=size)


def _needed(job: Job) -> int:
    """Bytes that are written: the checkpoint, and what changes a second time until it is in place."""
    stored = job.outlook.checkpoint.tensors
    planned = [f".{plan.index}." for plan in job.plan.layers]
    changed = sum(info.nbytes for name, info in stored.items() if any(part in name for part in planned))
    return sum(info.nbytes for info in stored.values()) + changed + _ROOM


def _write(job: Job, out: str, work: str) -> tuple[Written, list[str]]:
    """What was written into the workplace, and sentences on what is not as it was."""
    from gqacheck.runtime.configure import CannotRun

    notes: list[str] = []
    try:
        made, homes = _make(job, work)
        written = write_checkpoint(
            made,
            lambda: _model(job, made, notes),
            job.outlook.edits,
            job.child.checkpoint,
            homes,
            work,
            out,
            progress=job.progress,
        )
    except CannotRun as error:
        raise CannotRepair(f"the repaired model cannot be rebuilt, which a whole module needs: {error}") from error
    return written, notes


def _verify(job: Job, written: Written, work: str) -> tuple[CheckpointReport, Reference | None, tuple[str, ...]]:
    """The check of what was written, its logits beside the reference's, and why it must not be given its name."""
    alone = job.child.checkpoint.container is Container.STATE_DICT  # says nothing of head_dim itself
    options = replace(job.options, config=written.config, head_dim=job.options.head_dim if alone else None)
    after = check_path(written.check, options)
    wrong = check_written(after, job.before.lineage if job.parent is not None else None)
    if wrong or after.checkpoint is None or after.geometry is None:
        return after, None, wrong
    result = Side(after.checkpoint, after.geometry)
    wrong = compare_bytes(job.child, result, job.parent, job.plan.layers, kept_hidden=_kept_hidden(job))
    reference = None
    if not wrong and job.parent is not None and job.plan.layers:
        reference = compare_with_reference(after, work, progress=job.progress)
        wrong = _unequal(reference)
    return after, reference, wrong


def _kept_hidden(job: Job) -> Sequence[int] | None:
    return job.before.lineage.kept_hidden if job.before.lineage is not None else None


def _unequal(reference: Reference) -> tuple[str, ...]:
    if not reference.ran or reference.equal:
        return ()
    if reference.reason:
        return (f"what was written does not run: {reference.reason}",)
    return (
        f"what was written is not what the parent computes with the rest masked: logits differ by "
        f"{reference.difference:.2g} of their standard deviation where rounding makes {reference.allowed:.2g} at most",
    )


def _make(job: Job, work: str) -> tuple[Checkpoint, dict[str, str]]:
    """The repaired checkpoint, its changed tensors in a patch file, and the file that each tensor belongs to."""
    source = job.child.checkpoint
    patched = source
    if job.parent is not None and job.plan.layers:
        patched = apply_plan(
            job.child,
            job.parent,
            job.plan.layers,
            os.path.join(work, "patch"),
            kept_hidden=_kept_hidden(job),
            progress=job.progress,
        )
    names = new_names(patched.tensors, job.child.geometry)
    homes = find_homes(patched, source, names)
    if source.container is Container.MODULE:
        return patched, homes  # the rebuild numbers the layers
    config = job.outlook.checkpoint.config
    made = replace(patched, tensors=renumbered(patched.tensors, job.child.geometry), config=config)
    return made, homes


def _model(job: Job, made: Checkpoint, notes: list[str]) -> tuple[Any, Any]:
    from gqacheck.repair.modules import rebuild_module

    source = job.child.checkpoint
    beside = source.tokenizer is not None and source.tokenizer.kind == "folder"
    model, tokenizer, said = rebuild_module(
        made,
        measure(made, family=job.options.family, head_dim=job.options.head_dim),
        source,
        with_tokenizer=source.container is Container.FOLDER or not beside,
    )
    notes += said
    return model, tokenizer


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
