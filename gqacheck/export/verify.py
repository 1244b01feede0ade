"""What was written, before it gets its name: checked, loaded as a stranger would, and run beside the source."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError
from gqacheck.export.facts import CannotExport, Comparison, Form
from gqacheck.export.stream import Progress
from gqacheck.geometry.facts import Geometry
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity
from gqacheck.text import printable_list

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.trace import Trace

ALLOWED = 1e-4
"""Largest difference of two logits, as a share of their standard deviation, that the order of float32 sums may make.
Measured on exports of every family: 0. Every number that is written is compared with the source bit by bit besides."""
SMALL = 1 << 28
"""Bytes of float32 weights up to which a whole model is loaded; above, its layers are read as they are needed."""
_TOKENS, _FEW_TOKENS = 48, 8
_NEGLIGIBLE = 1 << 22


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint and its geometry."""

    checkpoint: Checkpoint
    geometry: Geometry


def check_folder(folder: str, before: CheckpointReport, *, force: bool, what: str = "folder") -> CheckpointReport:
    """The static check of the written folder, or of a file that ``what`` names.

    Raises:
        CannotExport: it has errors that ``force`` does not cover: only what the source had too is covered.
    """
    after = check_path(folder, Options())
    if after.error is not None:
        raise CannotExport(f"what was written cannot be read: {after.error}; nothing was written")
    known = {finding.code for finding in before.findings if finding.severity is Severity.ERROR} if force else set()
    wrong = [f for f in after.findings if f.severity is Severity.ERROR and f.code not in known]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        hint = "" if force else _force_hint(before, {finding.code for finding in wrong})
        raise CannotExport(
            f"the {what} would still have {wrong[0].code}: {wrong[0].message}{more}; nothing was written{hint}"
        )
    return after


def _force_hint(before: CheckpointReport, codes: set[str]) -> str:
    had = {finding.code for finding in before.findings if finding.severity is Severity.ERROR}
    return "; the source has it too: --force exports it as it is" if codes <= had else ""


def load_report(folder: str, form: Form) -> str:
    """Why plain transformers would not load the folder whole, "" when it would; no weight is read.

    Raises:
        CannotExport: loading raises.
    """
    from transformers import AutoModelForCausalLM

    from gqacheck.runtime.configure import one_line

    try:
        _, info = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=bool(form.code),
            local_files_only=True,
        )
    except Exception as error:  # a loader raises whatever it likes; the sentence goes to the user
        raise CannotExport(f"what was written does not load: {one_line(error)}; nothing was written") from error
    for key, said in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "holds, and the model has no place for,"),
        ("mismatched_keys", "holds in another shape"),
    ):
        names = sorted(str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in info.get(key) or ())
        if names:
            return f"the folder {said} {printable_list(names)}"
    return ""


def compare(
    source: Side, folder: str, form: Form, tokenizer: Any, *, rounded: str | None, progress: Progress | None = None
) -> Comparison:
    """The folder, loaded by plain transformers, beside the source's rebuilt model; one of them in memory at a time.

    rounded: the dtype that all weights were cast to, None when they are as stored. What cannot be run is a
    ``Comparison`` that says why. Zeros that were added change the order of sums: where float32 shows a difference then,
    float64 decides.

    Raises:
        CannotExport: the folder does not run although the source does.
    """

    def run(dtype: str | None) -> Comparison:
        return compare_with(
            lambda ids: _run_folder(folder, form, source, ids, dtype),
            source,
            tokenizer,
            rounded=rounded,
            progress=progress,
            dtype=dtype,
        )

    if form.padding is None:
        return run(None)
    found = run("float32")
    return run("float64") if found.ran and not found.equal else found


def compare_with(
    written: Callable[[torch.Tensor], Trace],
    source: Side,
    tokenizer: Any,
    *,
    rounded: str | None,
    progress: Progress | None = None,
    dtype: str | None = None,
) -> Comparison:
    """The same for anything that was written: ``written`` loads it and runs it over the ids that it is given.

    dtype: to compute in; None is float32, and where weights are read as they are needed what is quickest.

    Raises:
        CannotExport: it does not run although the source does.
    """
    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.trace import first_difference, nan_from, other_numbers, smoke_ids

    rows = source.geometry.embedding.rows if source.geometry.embedding is not None else 0
    ids = smoke_ids(tokenizer, rows, tokens=_TOKENS if is_small(source) else _FEW_TOKENS)
    try:
        theirs, kept = _run_source(source, rounded, ids, dtype)
    except CannotRun as error:
        return Comparison(False, f"the source is not run: {error}")
    except (GqacheckError, MemoryError) as error:
        return Comparison(False, str(error) or "there is not enough memory to run it")
    except Exception as error:  # what a forward pass raises
        return Comparison(False, f"the source does not run: {one_line(error)}")
    _free(source)
    if progress is not None:
        progress("run", 1, 2)
    try:
        ours = written(ids)
    except MemoryError:
        return Comparison(False, "there is not enough memory to run it")
    except Exception as error:  # as above
        raise CannotExport(f"what was written does not run: {one_line(error)}; nothing was written") from error
    _free(source)
    if progress is not None:
        progress("run", 2, 2)
    difference, layer = first_difference(ours, theirs, ALLOWED)
    said = other_numbers(ours, theirs) if difference <= ALLOWED else ""
    if said:
        raise CannotExport(f"what was written is not the source's model: {said}; nothing was written")
    lost = nan_from(theirs) if difference <= ALLOWED else ""
    if lost:
        return Comparison(False, lost)
    return Comparison(
        True, kept, difference, ALLOWED, layer, ids.numel(), _computed_in(source, dtype), streamed=not is_small(source)
    )


def _computed_in(source: Side, dtype: str | None) -> str:
    from gqacheck.runtime.on_demand import quick_dtype

    return dtype or ("float32" if is_small(source) else str(quick_dtype()).removeprefix("torch."))


def _run_source(source: Side, rounded: str | None, ids: torch.Tensor, dtype: str | None) -> tuple[Trace, str]:
    """The source's rebuilt model, and what it runs with that its config does not say.

    rounded: the dtype that its weights are cast to on the way out. dtype: as in ``compare_with``.
    """
    from gqacheck.runtime.on_demand import quick_dtype, read_on_demand
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.skeleton import live_layers
    from gqacheck.runtime.trace import trace
    from gqacheck.runtime.weights import torch_dtype

    small, narrow = is_small(source), None if rounded is None else torch_dtype(rounded)
    wide = torch_dtype(dtype or "float32")
    rebuilt = rebuild(source.checkpoint, source.geometry, dtype=wide, weights=small)
    model, layers = rebuilt.model, list(live_layers(rebuilt.model, source.geometry)[1])
    if not small:
        read_on_demand(model, layers, rebuilt.sources, dtype=quick_dtype() if dtype is None else wide, rounded=narrow)
    elif narrow is not None:
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(narrow).to(wide)
    kept = [note for note in rebuilt.notes if note.endswith("was kept")]
    return trace(model, layers, ids), "; ".join(kept)


def _run_folder(folder: str, form: Form, source: Side, ids: torch.Tensor, dtype: str | None) -> Trace:
    """The folder as ``from_pretrained`` loads it; a large one built by the same classes, its weights read as needed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from gqacheck.runtime.on_demand import quick_dtype
    from gqacheck.runtime.skeleton import construct, live_layers
    from gqacheck.runtime.trace import trace
    from gqacheck.runtime.weights import torch_dtype

    own, wide = bool(form.code), torch_dtype(dtype or "float32")
    if is_small(source):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=wide, trust_remote_code=own, local_files_only=True
        ).eval()
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=own, local_files_only=True)
        config.dtype = wide
        model = construct(config, own_code=own)
        _read_folder(model, folder, quick_dtype() if dtype is None else wide)
    if dtype == "float64" and hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # torch's grouped product knows no float64
    return trace(model, list(live_layers(model, source.geometry)[1]), ids)


def _read_folder(model: Any, folder: str, dtype: torch.dtype) -> None:
    """Makes ``model`` read its weights from the folder while it runs."""
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure
    from gqacheck.runtime.on_demand import read_on_demand
    from gqacheck.runtime.rebuild import sources_of
    from gqacheck.runtime.skeleton import live_layers

    written = open_checkpoint(folder)
    geometry = measure(written)
    sources = sources_of(model, written, geometry)
    read_on_demand(model, list(live_layers(model, geometry)[1]), sources, dtype=dtype)


def _free(source: Side) -> None:
    """Models hold themselves in circles. Collecting takes half a second, so not for a few megabytes, nor for
    a large one, which is not in memory."""
    if source.checkpoint.parameters > _NEGLIGIBLE and is_small(source):
        gc.collect()


def is_small(source: Side) -> bool:
    """Whether the whole model is loaded to be compared."""
    return source.checkpoint.parameters * 4 <= SMALL
