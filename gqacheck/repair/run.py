"""The repair from end to end: check, plan, foresee, write beside the destination, verify, move into place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from gqacheck.checkpoint import Checkpoint, Container, TensorInfo
from gqacheck.errors import UsageError
from gqacheck.geometry.facts import Geometry, Subject
from gqacheck.geometry.lines import slots_of
from gqacheck.geometry.origins import Lineage
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.repair.apply import Progress, planned_shapes
from gqacheck.repair.blocks import Side, layer_dtype
from gqacheck.repair.carry import Job, carry_out
from gqacheck.repair.facts import CannotRepair, Change, RepairReport
from gqacheck.repair.importance import query_importance
from gqacheck.repair.place import check_destination
from gqacheck.repair.plan import RepairPlan, plan_repair
from gqacheck.repair.predict import (
    Outlook,
    foresee,
    grown_ratios,
    mended,
    refusals,
    repaired_lineage,
)
from gqacheck.repair.words import config_changes, finding_changes, plan_changes
from gqacheck.repair.write import refuse_destination
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity


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
    if destination is not None:  # before anything is read: the weights may take minutes
        check_destination(destination, [given for given in (name, options.base) if given and os.path.exists(given)])
    job = _prepare(name, options, destination, from_base, progress)
    report = _plan_report(job, dry_run=dry_run)
    if not report.refused and report.changes and not dry_run:
        report = carry_out(job, report)
    return replace(report, seconds=perf_counter() - started)


def _prepare(path: str, options: Options, out: str | None, from_base: bool, progress: Progress | None) -> Job:
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
        found = plan_repair(
            geometry, parent.geometry, lineage, importance=query_importance(parent), from_base=from_base
        )
        plan = _accused(found, before)
    job = Job(path, options, out, child, parent, before, plan, Outlook(checkpoint, geometry, None, ()), progress)
    return replace(job, outlook=_outlook(job))


def _accused(plan: RepairPlan, before: CheckpointReport) -> RepairPlan:
    """The plan for the layers in which the check found an error: nothing is repaired that nobody accuses."""
    layers = {layer for finding in before.findings if finding.severity is Severity.ERROR for layer in finding.layers}
    return RepairPlan(
        tuple(planned for planned in plan.layers if planned.index in layers),
        tuple(refusal for refusal in plan.refused if layers & set(refusal.layers)),
        plan.left_alone,
    )


def _place_of(checkpoint: Checkpoint) -> str:
    """What must not be written into: the folder, or the single file."""
    files = {info.storage.file for info in checkpoint.tensors.values() if info.storage is not None}
    alone = len(files) == 1 and checkpoint.container is not Container.FOLDER and not os.path.isdir(checkpoint.path)
    return next(iter(files)) if alone else checkpoint.root


def _outlook(job: Job) -> Outlook:
    checkpoint, before = job.child.checkpoint, job.before
    codes = {finding.code for finding in before.findings}
    stored_apart = job.child.geometry.lm_head is not None and not job.child.geometry.lm_head_tied
    return foresee(
        checkpoint,
        planned_shapes(job.child, job.plan.layers),
        _missing_tensors(job),
        family=job.options.family,
        head_dim=job.options.head_dim,
        carried=_carried_head_dim(job.child.geometry),
        origins=_layer_origins(job),
        untie="GQA412" in codes and stored_apart,
        as_module=job.as_module,
        base=Subject(job.parent.checkpoint, job.parent.geometry) if job.parent is not None else None,
        lineage=repaired_lineage(before.lineage, job.plan.layers) if before.lineage is not None else None,
    )


def _carried_head_dim(geometry: Geometry) -> int | None:
    """head_dim as the modules of a pickle say it, which are not looked at any more when it is built anew."""
    found = {layer.attention.head_dim for layer in geometry.layers if layer.attention.head_dim is not None}
    values = {measured.value for measured in found if measured.source.startswith("module")}
    return values.pop() if len(values) == 1 else None


def _layer_origins(job: Job) -> Sequence[int] | None:
    """The number that each layer had before layers were removed, None when nothing tells."""
    lineage = job.before.lineage
    if lineage is not None and lineage.layers and all(layer.parent is not None for layer in lineage.layers):
        return [layer.parent for layer in lineage.layers if layer.parent is not None]
    numbers = [layer.index for layer in job.child.geometry.layers]
    return numbers if numbers != list(range(len(numbers))) else None


def _missing_tensors(job: Job) -> dict[str, TensorInfo]:
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


def _plan_report(job: Job, *, dry_run: bool) -> RepairReport:
    """What would be changed and what cannot be."""
    findings = job.before.findings
    refused = refusals(job.outlook, job.plan.refused)
    gone = mended(findings, job.outlook.findings)
    if job.parent is None and not refused:
        refused = grown_ratios(job.child.geometry, job.outlook.geometry)
    changes: tuple[Change, ...] = ()
    if gone or job.plan.layers:
        changes = (
            *plan_changes(job.plan.layers),
            *config_changes(job.outlook.edits),
            *finding_changes(gone, as_module=job.as_module),
        )
    left = [*job.plan.left_alone]
    left += [f"{f.code} {f.message}" for f in job.outlook.findings if f.severity is Severity.WARNING]
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
