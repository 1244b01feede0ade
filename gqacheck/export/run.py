"""The export from end to end: check, choose a form, write beside the destination, verify, move into place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.errors import GqacheckError, UsageError
from gqacheck.export.beside import tokenizer_fault, write_generation_config, write_papers, write_tokenizer
from gqacheck.export.facts import CannotExport, Comparison, ExportReport, Form
from gqacheck.export.form import Wanted, choose_form, main_dtype
from gqacheck.export.llm_pruner import pickle_like, refuse_beside
from gqacheck.export.source import (
    ABOUT_MEANING,
    Fingerprint,
    fingerprint,
    fingerprint_unread,
    refuse_unsound,
    tied_to_embedding,
)
from gqacheck.export.stream import Progress, parse_size, plan_shards, write_shards
from gqacheck.export.verify import Side, check_folder, compare, load_report
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.place import check_destination, move_into_place, require_space, workplace
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity

LABEL = "OUT"
_DTYPES = ("float32", "bfloat16", "float16", "float64")
SHARD = "5GB"
"""Size of one file when nothing is said."""
ROOM = 64 << 20
"""Bytes for headers, configs and tokenizers."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """The request, checked."""

    path: str
    out: str
    options: Options
    dtype: str | None
    shard_bytes: int
    tokenizer: str | None
    force: bool
    pad: bool
    like: str | None
    progress: Progress | None


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    pad: bool = False,
    like: str | None = None,
    config: str | os.PathLike[str] | None = None,
    family: str | None = None,
    head_dim: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes the checkpoint at ``path`` as the folder ``out`` that plain transformers loads, and says how.

    Layers of one size load with ``AutoModelForCausalLM.from_pretrained(out)``; where layers differ, the folder brings a
    modelling file of its own and loads with ``trust_remote_code=True``. Nothing of a pickle is executed, tensors are
    streamed, the checkpoint is never touched. Before the folder gets its name it is checked, loaded, and its logits are
    compared with the source's.

    dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64`` for all weights; None or ``auto`` keeps each as it is
    stored. pad: zeros where layers are smaller than others, so that a class of transformers holds them all; the report
    says what they cost. like: ``llm-pruner`` makes ``out`` a file, ``{'model': …, 'tokenizer': …}`` for ``torch.load``;
    the whole model is in memory then. force: export in spite of errors that are not about the tensors; nothing is ever
    made up.

        >>> report = export("pytorch_model.bin", "exported/")      # doctest: +SKIP
        >>> report.way, report.comparison.difference
        ('own-code', 0.0)

    Raises:
        UsageError: the request makes no sense (``out`` exists, or is the source or inside it).
        CannotExport: it cannot be exported, with the reason; nothing was written.
        ReadError: a file that was named cannot be read.
        MissingDependency: torch or transformers is not installed.
    """
    started = perf_counter()
    asked = _Asked(
        os.fspath(path),
        os.fspath(out),
        Options(config=None if config is None else os.fspath(config), family=family, head_dim=head_dim),
        checked_dtype(dtype),
        parse_size(SHARD if max_shard_size is None else max_shard_size),
        None if tokenizer is None else os.fspath(tokenizer),
        force,
        pad,
        like,
        progress,
    )
    if like is not None:
        refuse_beside(like, pad=pad, sized=max_shard_size is not None)
    from gqacheck.runtime.running import require_run_extra

    require_run_extra("export")
    unread = fingerprint_unread(asked.path)
    before = check_path(asked.path, asked.options)
    if before.checkpoint is None or before.geometry is None or before.error is not None:
        raise CannotExport(before.error or "the checkpoint cannot be read")
    checkpoint = before.checkpoint
    marks = fingerprint(checkpoint)
    _refuse_changed(unread)
    check_destination(asked.out, [_place_of(checkpoint)], label=LABEL, file=like is not None)
    refuse_unsound(before, head_dim_given=head_dim is not None, force=force)
    with workplace(asked.out, CannotExport) as work, quietly(work):
        return (_carry_out if like is None else _pickle)(asked, before, work, marks, started)


def checked_dtype(dtype: str | None) -> str | None:
    """The dtype to cast to, None for ``auto``. Raises UsageError for one that weights are not written in."""
    if dtype in (None, "auto"):
        return None
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {str(dtype)[:40]!r}: use float32, bfloat16, float16 or auto (as stored)")
    return dtype


def _place_of(checkpoint: Checkpoint) -> str:
    """What must not be written into: the folder, or the single file."""
    files = {info.storage.file for info in checkpoint.tensors.values() if info.storage is not None}
    alone = len(files) <= 1 and checkpoint.container is not Container.FOLDER and not os.path.isdir(checkpoint.path)
    return next(iter(files), checkpoint.path) if alone else checkpoint.root


@contextmanager
def quietly(work: str) -> Iterator[None]:
    """Third parties print nothing, ask nobody, and leave no modules behind."""
    import torch

    from gqacheck.runtime.own_code import own_code_in
    from gqacheck.runtime.quiet import quiet_and_offline

    with quiet_and_offline(), own_code_in(os.path.join(work, "modules")), torch.random.fork_rng(devices=[]):
        yield


def _carry_out(asked: _Asked, before: CheckpointReport, work: str, marks: Fingerprint, started: float) -> ExportReport:
    checkpoint, geometry = before.checkpoint, before.geometry
    assert checkpoint is not None
    assert geometry is not None
    tied = tied_to_embedding(checkpoint, geometry)
    form = choose_form(Wanted(checkpoint, geometry, work, tied, asked.dtype, asked.pad))
    require_space(work, sum(each.nbytes for each in form.tensors) + ROOM, CannotExport, what="the export")
    folder = os.path.join(work, "out")
    os.mkdir(folder)
    shards = plan_shards(form.tensors, asked.shard_bytes)
    write_shards(folder, shards, asked.progress)
    notes = [*form.notes, *forced(before), *write_beside(folder, form, checkpoint)]
    kept = write_tokenizer(folder, checkpoint, asked.tokenizer, code_too=form.way == "as-stored" and bool(form.code))
    ours = form.way == "own-code"  # nobody else's code is run
    fault = tokenizer_fault(folder, checkpoint, asked.tokenizer, own_code=ours) if form.way != "as-stored" else ""
    if fault:
        notes.append(f"tokenizer: {fault}")
    after, comparison = _verify(asked, before, folder, form)
    _refuse_changed(marks)
    files = tuple(sorted(os.listdir(folder)))
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in files)
    move_into_place(folder, asked.out, label=LABEL)
    return ExportReport(
        asked.path,
        asked.out,
        form.way,
        form.why,
        form.architecture,
        dtypes_of(form),
        sum(each.numel for each in form.tensors),
        len(shards),
        files,
        kept,
        tuple(notes),
        _cured(before, after),
        before,
        after,
        comparison,
        size,
        perf_counter() - started,
        form.padding,
    )


def _pickle(asked: _Asked, before: CheckpointReport, work: str, marks: Fingerprint, started: float) -> ExportReport:
    """The way of ``--like llm-pruner``: one file."""
    assert before.checkpoint is not None
    file = os.path.join(work, "out.bin")
    made = pickle_like(
        file, before, dtype=asked.dtype, tokenizer=asked.tokenizer, force=asked.force, progress=asked.progress
    )
    _refuse_changed(marks)
    size = os.path.getsize(file)
    move_into_place(file, asked.out, label=LABEL)
    return ExportReport(
        asked.path,
        asked.out,
        "llm-pruner",
        "",
        made.architecture,
        made.dtype,
        made.parameters,
        1,
        (os.path.basename(asked.out),),
        made.tokenizer,
        (*forced(before), *made.notes),
        _cured(before, made.after),
        before,
        made.after,
        made.comparison,
        size,
        perf_counter() - started,
    )


def _refuse_changed(marks: Fingerprint) -> None:
    changed = marks.changed()
    if changed:
        raise CannotExport(f"{changed} changed while it was read; nothing was written: export it again")


def write_beside(folder: str, form: Form, checkpoint: Checkpoint) -> list[str]:
    """Writes config, code, generation settings and papers; sentences on what was changed."""
    _write_json(os.path.join(folder, "config.json"), form.config)
    for name, source in form.code.items():
        with open(os.path.join(folder, name), "x", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(source)
    write_papers(folder, checkpoint)
    return write_generation_config(folder, checkpoint, form.config)


def _write_json(path: str, values: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as stream:
        json.dump(values, stream, indent=2)  # ASCII: half a surrogate pair, which a pickle may hold, is no UTF-8
        stream.write("\n")


def _verify(asked: _Asked, before: CheckpointReport, folder: str, form: Form) -> tuple[CheckpointReport, Comparison]:
    """The check of the folder and its logits beside the source's.

    Raises:
        CannotExport: the folder is not what the source is; the message says where it begins.
    """
    checkpoint, geometry = before.checkpoint, before.geometry
    assert checkpoint is not None
    assert geometry is not None
    after = check_folder(folder, before, force=asked.force)
    if form.way == "as-stored":
        return after, Comparison(False, form.why)
    lacking = load_report(folder, form)
    if lacking:
        raise CannotExport(f"{lacking}; nothing was written")
    comparison = compare(
        Side(checkpoint, geometry),
        folder,
        form,
        tokenizer_in(folder),
        rounded=asked.dtype,
        progress=asked.progress,
    )
    if comparison.ran and not comparison.equal:
        why = f" ({comparison.reason}, which no config can say)" if comparison.reason else ""
        raise CannotExport(
            f"what was written computes something else than the source, from {comparison.layer} on: logits differ by "
            f"{comparison.difference:.2g} of their standard deviation where rounding makes {comparison.allowed:.2g} at "
            f"most{why}; nothing was written"
        )
    return after, comparison


def tokenizer_in(folder: str) -> Any:
    """The tokenizer in a written folder, None without."""
    from gqacheck.formats import open_checkpoint
    from gqacheck.runtime.tokenizer import open_tokenizer

    try:
        return open_tokenizer(open_checkpoint(folder))
    except GqacheckError:
        return None


def dtypes_of(form: Form) -> str:
    """Dtypes of the weights, the commonest first."""
    main = main_dtype(form.tensors)
    others = sorted({each.dtype for each in form.tensors} - {main})
    return ", ".join((main, *others))


def forced(before: CheckpointReport) -> Iterator[str]:
    """Sentences on the errors that nobody sees any more in what was written, and that --force let pass."""
    for finding in before.findings:
        if finding.severity is Severity.ERROR and finding.code in ABOUT_MEANING:
            yield f"{finding.code} {finding.message}: exported as it is, because of --force; the export cannot show it"


def _cured(before: CheckpointReport, after: CheckpointReport) -> tuple[str, ...]:
    """Errors of the source that the folder does not have; not those that it only hides."""
    left = {finding.code for finding in after.findings} | ABOUT_MEANING
    return tuple(
        f"{finding.code} {finding.message}"
        for finding in before.findings
        if finding.severity is Severity.ERROR and finding.code not in left
    )
