"""A live model as a folder that plain transformers loads: written from its tensors in memory, without a pickle between.

What a pruner has at its end, and what ``save_pretrained`` cannot write when layers differ in size or a class refuses
the head counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gqacheck.api import check_model
from gqacheck.checkpoint import Checkpoint
from gqacheck.export.beside import save_tokenizer, tokenizer_fault, write_papers, write_tokenizer
from gqacheck.export.content import BLOCK, Planned, Stored
from gqacheck.export.facts import CannotExport, Comparison, ExportReport, Form
from gqacheck.export.form import Wanted, choose_form
from gqacheck.export.run import (
    LABEL,
    ROOM,
    SHARD,
    checked_dtype,
    dtypes_of,
    forced,
    quietly,
    tokenizer_in,
    write_beside,
)
from gqacheck.export.source import refuse_unsound
from gqacheck.export.stream import Progress, parse_size, plan_shards, write_shards
from gqacheck.export.verify import ALLOWED, SMALL, check_folder, load_report
from gqacheck.geometry.config import is_true
from gqacheck.geometry.facts import Geometry
from gqacheck.place import check_destination, move_into_place, require_space, workplace
from gqacheck.result import CheckpointReport

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.weights import WeightReader

NAME = "live model"
_TOKENS = 48
_ALLOWED_IN_HALF = 2e-2  # bfloat16 sums in another order; the bytes are compared besides


@dataclass(frozen=True, slots=True)
class Live:
    """A tensor in memory, or a view of one."""

    tensor: torch.Tensor

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensor.numel()

    def blocks(self, reader: WeightReader) -> Iterator[torch.Tensor]:
        """The elements, some rows at a time, on the CPU; ``reader`` is not needed."""
        values = self.tensor.detach()
        rows = values.shape[0] if values.dim() else 1
        step = max(1, BLOCK // max(1, values.nbytes // max(rows, 1)))
        if values.dim() == 0 or step >= rows:
            yield values.cpu()
            return
        for start in range(0, rows, step):
            yield values[start : start + step].cpu()


@dataclass(frozen=True, slots=True)
class WrittenModel:
    """What stands in a folder that is not in its place yet: its form, how many weight files, and how it was checked."""

    form: Form
    shards: int
    tokenizer: str
    notes: tuple[str, ...]
    before: CheckpointReport
    after: CheckpointReport
    comparison: Comparison


def export_model(
    model: Any,
    out: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    dtype: str | None = None,
    max_shard_size: str | int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes the live ``model`` as the new folder ``out`` that plain transformers loads, and says how.

    The model is left as it is. Layers of one size load with ``AutoModelForCausalLM.from_pretrained(out)``; where
    layers differ, the folder brings a modelling file of its own and loads with ``trust_remote_code=True``. Every weight
    is read back, and the logits of a small model are compared, before the folder gets its name.

    tokenizer: one of transformers, or None for a folder without. dtype: of all weights; None keeps each as it is.
    force: write it in spite of errors that are not about the tensors.

        >>> model, tokenizer = gqacheck.load_model("parent/")                  # doctest: +SKIP
        >>> pruners.prune(model, plan)
        >>> export_model(model, "pruned/", tokenizer=tokenizer).way
        'stock'

    Raises:
        UsageError: the request makes no sense (``out`` exists, ``model`` is no module).
        CannotExport: it cannot be written so, with the reason; nothing was written.
        MissingDependency: torch or transformers is not installed.
    """
    started = perf_counter()
    from gqacheck.runtime.running import require_run_extra

    require_run_extra("export_model")
    destination = os.fspath(out)
    check_destination(destination, [], label=LABEL)
    wanted, shard_bytes = checked_dtype(dtype), parse_size(SHARD if max_shard_size is None else max_shard_size)
    with workplace(destination, CannotExport) as work:
        folder = os.path.join(work, "out")
        os.mkdir(folder)
        made = write_model(
            model, folder, tokenizer=tokenizer, dtype=wanted, shard_bytes=shard_bytes, force=force, progress=progress
        )
        files = tuple(sorted(os.listdir(folder)))
        size = sum(os.path.getsize(os.path.join(folder, name)) for name in files)
        move_into_place(folder, destination, label=LABEL)
    form = made.form
    return ExportReport(
        NAME,
        destination,
        form.way,
        form.why,
        form.architecture,
        dtypes_of(form),
        sum(each.numel for each in form.tensors),
        made.shards,
        files,
        made.tokenizer,
        made.notes,
        (),
        made.before,
        made.after,
        made.comparison,
        size,
        perf_counter() - started,
    )


def write_model(
    model: Any,
    folder: str,
    *,
    tokenizer: Any = None,
    source: Checkpoint | None = None,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> WrittenModel:
    """``export_model`` into the empty ``folder``, which is not moved anywhere; the folder above it is written in too.

    source: the checkpoint that the model was made of: its tokenizer and its licence are copied.

    Raises:
        CannotExport: it cannot be written so, with the reason.
    """
    from gqacheck.runtime.live import describe_model, live_tensors

    before = check_model(model)
    if before.geometry is None or before.error is not None:
        raise CannotExport(before.error or "the model cannot be measured")
    refuse_unsound(before, head_dim_given=False, force=force)
    checkpoint, geometry = describe_model(model), before.geometry
    work = os.path.dirname(folder)
    with quietly(work):
        live = live_tensors(model)
        form = choose_form(Wanted(checkpoint, geometry, work, _tied(live, geometry), dtype))
        form = replace(form, tensors=tuple(_from_memory(each, live) for each in form.tensors))
        require_space(work, sum(each.nbytes for each in form.tensors) + ROOM, CannotExport, what="the model")
        shards = plan_shards(form.tensors, parse_size(SHARD) if shard_bytes is None else shard_bytes)
        write_shards(folder, shards, progress)
        notes = [*form.notes, *forced(before), *write_beside(folder, form, checkpoint)]
        kept, fault = _write_tokenizer(folder, tokenizer, source, own_code=form.way == "own-code")
        notes += [f"tokenizer: {fault}"] if fault else []
        after = check_folder(folder, before, force=force)
        lacking = "" if form.way == "as-stored" else load_report(folder, form)
        if lacking:
            raise CannotExport(f"{lacking}; nothing was written")
        comparison = _compare(model, geometry, folder, form, dtype)
    return WrittenModel(form, len(shards), kept, tuple(notes), before, after, comparison)


def _tied(live: Mapping[str, torch.Tensor], geometry: Geometry) -> bool:
    """Whether lm_head is the embedding: the same tensor, or an equal one where the config says so.

    Raises:
        CannotExport: there is none, and nothing ties it.
    """
    import torch

    if geometry.embedding is None:
        raise CannotExport("the model has no token embedding")
    if geometry.lm_head is None:
        if not geometry.lm_head_tied:
            raise CannotExport("the model has no lm_head and its config does not tie it to the embedding")
        return True
    embedding, head = live[geometry.embedding.tensor], live[geometry.lm_head.tensor]
    if head.data_ptr() == embedding.data_ptr() and head.shape == embedding.shape and not head.is_meta:
        return True
    stated = is_true(geometry.config, "tie_word_embeddings", geometry.family.ties_by_default)
    return stated and head.shape == embedding.shape and torch.equal(head, embedding)


def _from_memory(planned: Planned, live: Mapping[str, torch.Tensor]) -> Planned:
    """The same tensor, its elements taken from memory instead of from a file."""
    contents = tuple(
        Live(live[part.info.name].as_strided(part.info.shape, part.info.strides, part.info.storage_offset))
        if isinstance(part, Stored)
        else part
        for part in planned.contents
    )
    return replace(planned, contents=contents)


def _write_tokenizer(folder: str, tokenizer: Any, source: Checkpoint | None, *, own_code: bool) -> tuple[str, str]:
    """What became of the tokenizer, in a clause, and why it is not the source's ("" when it is)."""
    if source is not None:
        write_papers(folder, source, card=False)
        said = write_tokenizer(folder, source, None)
        return said, tokenizer_fault(folder, source, None, own_code=own_code)
    if tokenizer is None:
        return "none was given", ""
    said = save_tokenizer(folder, tokenizer, None, code_too=True)
    return said if said.startswith("none") else "written", ""


def _compare(model: Any, geometry: Geometry, folder: str, form: Form, dtype: str | None) -> Comparison:
    """The folder's logits beside the model's, in the model's own dtype and on its device.

    Raises:
        CannotExport: they differ, or the folder does not run although the model does.
    """
    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.trace import first_difference as first
    from gqacheck.runtime.trace import nan_from, other_numbers, smoke_ids

    if form.way == "as-stored":
        return Comparison(False, form.why)
    if sum(each.numel for each in form.tensors) * 4 > SMALL:
        return Comparison(
            False, "every weight was read back and is the model's; a model of this size is not loaded twice"
        )
    rows = geometry.embedding.rows if geometry.embedding is not None else 0
    ids = smoke_ids(tokenizer_in(folder), rows, tokens=_TOKENS).to(model.get_input_embeddings().weight.device)
    try:
        theirs = _run_model(model, geometry, ids, dtype)
    except Exception as error:  # what a forward pass raises
        return Comparison(False, f"the model in memory does not run: {one_line(error)}")
    try:
        ours = _run_folder(model, geometry, folder, form, ids)
    except Exception as error:  # as above
        raise CannotExport(f"what was written does not run: {one_line(error)}; nothing was written") from error
    name = str(model.dtype).removeprefix("torch.")
    allowed = ALLOWED if name in ("float32", "float64") else _ALLOWED_IN_HALF
    difference, layer = first(ours, theirs, allowed)
    if difference > allowed:
        raise CannotExport(
            f"what was written computes something else than the model in memory, from {layer} on: logits differ by "
            f"{difference:.2g} of their standard deviation where rounding makes {allowed:.2g} at most; nothing was "
            "written"
        )
    said = other_numbers(ours, theirs)
    if said:
        raise CannotExport(f"what was written is not the model in memory: {said}; nothing was written")
    lost = nan_from(theirs)
    return Comparison(False, lost) if lost else Comparison(True, "", difference, allowed, layer, ids.numel(), name)


def _run_model(model: Any, geometry: Geometry, ids: torch.Tensor, dtype: str | None) -> Any:
    """The trace of the model with its weights as they are written; it is as it was afterwards."""
    from gqacheck.runtime.skeleton import live_layers
    from gqacheck.runtime.trace import trace
    from gqacheck.runtime.weights import torch_dtype

    training = model.training
    own = {}
    try:
        if dtype is not None:
            for parameter in model.parameters():
                own[parameter] = parameter.data
                parameter.data = parameter.data.to(torch_dtype(dtype)).to(parameter.dtype)
        return trace(model.eval(), list(live_layers(model, geometry)[1]), ids)
    finally:
        for parameter, values in own.items():
            parameter.data = values
        model.train(training)


def _run_folder(model: Any, geometry: Geometry, folder: str, form: Form, ids: torch.Tensor) -> Any:
    """The trace of the folder as ``from_pretrained`` loads it, with the dtype and the attention of ``model``."""
    import torch
    from transformers import AutoModelForCausalLM

    from gqacheck.runtime.skeleton import live_layers
    from gqacheck.runtime.trace import trace

    written = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=model.dtype,
        trust_remote_code=bool(form.code),
        local_files_only=True,
        attn_implementation=model.config._attn_implementation,
    )
    written = written.to(ids.device).eval()
    theirs = dict(model.named_buffers())
    for name, buffer in written.named_buffers():
        rounded = theirs.get(name)  # model.half() rounds rotary frequencies, which no folder can say
        if rounded is not None and rounded.dtype != buffer.dtype and torch.equal(buffer.to(rounded.dtype), rounded):
            buffer.data = rounded.data.clone()
    return trace(written, list(live_layers(written, geometry)[1]), ids)
