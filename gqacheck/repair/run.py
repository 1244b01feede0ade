"""The repair from end to end: check, plan, foresee, write beside the destination, verify, move into place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container, TensorInfo
from gqacheck.errors import UsageError
from gqacheck.geometry.facts import Geometry, Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Lineage
from gqacheck.pipeline import Options, check_path
from gqacheck.repair.apply import Progress, Side, apply_plan, layer_dtype, planned_shapes, query_importance
from gqacheck.repair.facts import CannotRepair, Change, Reference, Refusal, RepairReport
from gqacheck.repair.place import check_destination, move_into_place, names_a_file, require_space, workplace
from gqacheck.repair.plan import RepairPlan, plan_repair
from gqacheck.repair.predict import (
    Outlook,
    foresee,
    grown_ratios,
    mended,
    new_names,
    refusals,
    renumbered,
    repaired_lineage,
)
from gqacheck.repair.slots import slots_of
from gqacheck.repair.verify import check_written, compare_with_reference
from gqacheck.repair.words import config_changes, finding_changes, plan_changes
from gqacheck.repair.write import find_homes, refuse_destination, write_checkpoint
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity


@dataclass(frozen=True, slots=True)
class _Job:
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


def repair(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    from_base: bool = False,
    config: str | os.PathLike[str] | None = None,
    family: str | None = None,
    head_dim: int | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Writes a sound copy of the checkpoint at ``path`` to ``out`` and says what was changed.

    With ``base`` (the checkpoint before pruning) every kept KV head gets its own query heads back and projections are
    realigned; blocks that the checkpoint still has are moved, not replaced, so fine-tuning stays, unless ``from_base``.
    Without it what needs no parent is mended: attributes, head counts, config, layer numbers, oversized storages.
    The copy is checked before it gets its name; the checkpoint itself is never touched, and ``out`` never overwritten.
    ``dry_run`` writes nothing and needs no ``out``. Where there is nothing to mend, nothing is written.

        >>> report = repair("pytorch_model.bin", base="parent/", out="fixed/")      # doctest: +SKIP
        >>> report.out, report.reference.equal
        ('fixed/', True)

    Raises:
        UsageError: the request makes no sense (``out`` exists, is a source, ``from_base`` without ``base``).
        CannotRepair: it cannot be repaired at all: unreadable, packed, of another parent, no space left.
        MissingDependency: torch or transformers is not installed.
    """
    started = perf_counter()
    name = os.fspath(path)
    if out is None and not dry_run:
        raise UsageError(
            "repair writes a new checkpoint: say where with -o OUT, or see what it would do with --dry-run"
        )
    if from_base and base is None:
        raise UsageError("--from-base takes the tensors of repaired layers from the parent: name it with --base")
    destination = None if out is None else os.fspath(out)
    options = Options(
        base=None if base is None else os.fspath(base),
        config=None if config is None else os.fspath(config),
        family=family,
        head_dim=head_dim,
        progress=progress,
    )
    job = _prepare(name, options, destination, from_base, progress)
    report = _plan_report(job, dry_run=dry_run)
    if not report.refused and report.changes and not dry_run:
        report = _carry_out(job, report)
    return replace(report, seconds=perf_counter() - started)


def _prepare(path: str, options: Options, out: str | None, from_base: bool, progress: Progress | None) -> _Job:
    before = check_path(path, options)
    if before.checkpoint is None or before.geometry is None or before.error is not None:
        raise CannotRepair(before.error or "the checkpoint cannot be read")
    checkpoint, geometry = before.checkpoint, before.geometry
    base = before.base
    parent = None
    if base is not None and base.checkpoint is not None and base.geometry is not None:
        parent = Side(base.checkpoint, base.geometry)
        options = replace(options, base=base.path)
    if out is not None:
        check_destination(out, [_place_of(side) for side in (checkpoint, parent and parent.checkpoint) if side])
        refuse_destination(checkpoint, out)
    if checkpoint.quantization is not None:
        raise CannotRepair(
            f"the weights are packed ({checkpoint.quantization}): repair the checkpoint before it is quantised"
        )
    if parent is not None and parent.checkpoint.quantization is not None:
        raise CannotRepair(f"the parent's weights are packed ({parent.checkpoint.quantization}): name the original one")
    if geometry.family.generic:
        raise CannotRepair("the model family is not known, so what to write cannot be told: say it with --family NAME")
    child = Side(checkpoint, geometry)
    plan = RepairPlan()
    if parent is not None:
        lineage = before.lineage or Lineage("not-compared")
        plan = plan_repair(geometry, parent.geometry, lineage, importance=query_importance(parent), from_base=from_base)
    job = _Job(path, options, out, child, parent, before, plan, Outlook(checkpoint, geometry, None, ()), progress)
    return replace(job, outlook=_outlook(job))


def _place_of(checkpoint: Checkpoint) -> str:
    """What must not be written into: the folder, or the single file."""
    files = {info.storage.file for info in checkpoint.tensors.values() if info.storage is not None}
    alone = len(files) == 1 and checkpoint.container is not Container.FOLDER and not os.path.isdir(checkpoint.path)
    return next(iter(files)) if alone else checkpoint.root


def _outlook(job: _Job) -> Outlook:
    checkpoint, before = job.child.checkpoint, job.before
    codes = {finding.code for finding in before.findings}
    stored_apart = job.child.geometry.lm_head is not None and not job.child.geometry.lm_head_tied
    return foresee(
        checkpoint,
        planned_shapes(job.child, job.plan.layers),
        _missing_tensors(job),
        family=job.options.family,
        head_dim=job.options.head_dim,
        origins=_layer_origins(job),
        untie="GQA412" in codes and stored_apart,
        as_module=job.as_module,
        base=Subject(job.parent.checkpoint, job.parent.geometry) if job.parent is not None else None,
        lineage=repaired_lineage(before.lineage, job.plan.layers) if before.lineage is not None else None,
    )


def _layer_origins(job: _Job) -> Sequence[int] | None:
    """The number that each layer had before layers were removed, None when nothing tells."""
    lineage = job.before.lineage
    if lineage is not None and lineage.layers and all(layer.parent is not None for layer in lineage.layers):
        return [layer.parent for layer in lineage.layers if layer.parent is not None]
    numbers = [layer.index for layer in job.child.geometry.layers]
    return numbers if numbers != list(range(len(numbers))) else None


def _missing_tensors(job: _Job) -> dict[str, TensorInfo]:
    """Tensors that the child lacks and the plan adds, as the rules will see them."""
    found: dict[str, TensorInfo] = {}
    if job.parent is None:
        return found
    for plan in job.plan.layers:
        layer, theirs = job.child.layer(plan.index), job.parent.layer(plan.parent)
        own, sources = dict(slots_of(job.child.geometry, layer)), dict(slots_of(job.parent.geometry, theirs))
        for take in plan.changed:
            source = sources.get((take.role, take.kind, take.parent_expert))
            if (take.role, take.kind, take.expert) in own or source is None:
                continue
            like = job.parent.checkpoint.tensors[source.tensor]
            n = len(take.take) * source.unit
            shape = (n,) if take.kind != "weight" else (like.shape[0], n) if source.turned else (n, like.shape[1])
            name = layer.path + source.tensor.removeprefix(theirs.path)
            dtype = layer_dtype(layer) or like.dtype
            found[name] = TensorInfo(name, shape, dtype, _dense(shape), kind=like.kind)
    return found


def _dense(shape: Sequence[int]) -> tuple[int, ...]:
    return (1,) if len(shape) == 1 else (shape[1], 1)


def _plan_report(job: _Job, *, dry_run: bool) -> RepairReport:
    """What would be changed and what cannot be."""
    findings = job.before.findings
    refused = refusals(job.outlook, job.plan.refused)
    gone = mended(findings, job.outlook.findings)
    if job.parent is None and not refused:
        refused = grown_ratios(job.child.geometry, job.outlook.geometry)
    changes: tuple[Change, ...] = ()
    if gone or job.plan.layers:
        changes = (
            *plan_changes(job.plan.layers, job.parent.geometry if job.parent else None),
            *config_changes(job.outlook.edits),
            *finding_changes(gone, as_module=job.as_module),
        )
    left = [*job.plan.left_alone]
    left += [
        f"{finding.code} {finding.message}" for finding in job.outlook.findings if finding.severity is Severity.WARNING
    ]
    return RepairReport(
        job.path,
        job.options.base,
        None,
        dry_run,
        job.before,
        changes=changes,
        left_alone=tuple(left),
        refused=refused,
        plans=job.plan.layers,
    )


def _carry_out(job: _Job, report: RepairReport) -> RepairReport:
    """The report after the repaired checkpoint was written, verified and moved into place."""
    from gqacheck.runtime.configure import CannotRun
    from gqacheck.runtime.run import require_run_extra

    require_run_extra("repair")
    assert job.out is not None
    with workplace(job.out) as work:
        nbytes = sum(info.nbytes for info in job.outlook.checkpoint.tensors.values())
        changed = sum(
            job.outlook.checkpoint.tensors[new].nbytes
            for new in job.outlook.checkpoint.tensors
            if any(f".{plan.index}." in new for plan in job.plan.layers)
        )
        require_space(work, nbytes + changed + (1 << 20))
        try:
            made, homes = _make(job, work)
            notes: list[str] = []
            written = write_checkpoint(
                made,
                lambda: _model(job, made, notes),
                job.outlook.edits,
                job.child.checkpoint,
                homes,
                work,
                job.out,
                progress=job.progress,
            )
        except CannotRun as error:
            raise CannotRepair(f"the repaired model cannot be rebuilt, which a whole module needs: {error}") from error
        checking = replace(
            job.options,
            config=written.config,
            head_dim=job.options.head_dim if made.container is Container.STATE_DICT else None,
        )
        after = check_path(written.check, checking)
        wrong = check_written(after, pairing=job.parent is not None)
        reference = None
        if not wrong and job.parent is not None and job.plan.layers:
            reference = compare_with_reference(after, work, progress=job.progress)
            wrong = _unequal(reference)
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


def _unequal(reference: Reference) -> tuple[str, ...]:
    if not reference.ran or reference.equal:
        return ()
    if reference.reason:
        return (f"what was written does not run: {reference.reason}",)
    return (
        f"what was written is not what the parent computes with the rest masked: logits differ by "
        f"{reference.difference:.2g} of their standard deviation where rounding makes {reference.allowed:.2g} at most",
    )


def _make(job: _Job, work: str) -> tuple[Checkpoint, dict[str, str]]:
    """The repaired checkpoint, its changed tensors in a patch file, and the file that each tensor belongs to."""
    source = job.child.checkpoint
    patched = source
    if job.parent is not None and job.plan.layers:
        lineage = job.before.lineage
        patched = apply_plan(
            job.child,
            job.parent,
            job.plan.layers,
            os.path.join(work, "patch"),
            kept_hidden=lineage.kept_hidden if lineage is not None else None,
            progress=job.progress,
        )
    container = Container.MODULE if source.container is Container.MODULE else source.container
    names = new_names(patched.tensors, job.child.geometry)
    homes = find_homes(patched, source, names)
    if source.container is Container.MODULE:
        return patched, homes  # the rebuild numbers the layers
    config = job.outlook.checkpoint.config
    made = replace(patched, tensors=renumbered(patched.tensors, job.child.geometry), config=config, container=container)
    return made, homes


def _model(job: _Job, made: Checkpoint, notes: list[str]) -> tuple[Any, Any]:
    from gqacheck.repair.modules import rebuild_module

    source = job.child.checkpoint
    beside = source.tokenizer is not None and source.tokenizer.kind == "folder"
    model, tokenizer, said = rebuild_module(
        made,
        _measured(made, job),
        source,
        with_tokenizer=source.container is Container.FOLDER or not beside,
    )
    notes += said
    return model, tokenizer


def _measured(made: Checkpoint, job: _Job) -> Geometry:
    return measure(made, family=job.options.family, head_dim=job.options.head_dim)


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
