"""A pruned model on disk: a folder that transformers loads and the plan that made it, checked before it has a name."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError
from gqacheck.export.live import WrittenModel, write_model
from gqacheck.export.llm_pruner import LIKE
from gqacheck.export.run import export
from gqacheck.place import move_into_place, workplace
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Finding
from gqacheck.runtime.weights import is_floating
from gqacheck.text import printable
from pruners.plan import PruningPlan
from pruners.plan_file import plan_to_json

PLAN = "pruning_plan.json"
PICKLE = os.path.join(LIKE, "pytorch_model.bin")
LABEL, PLAN_LABEL = "OUT", "--save-plan"

Progress = Callable[[str, int, int], None]


class CannotSave(GqacheckError):
    """The pruned model cannot be written; nothing was (exit 3)."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written, its check, and its files by name with their bytes.

    errors: the check's, without those that the parent has too. placed: whether the folder has got its name.
    """

    written: WrittenModel
    check: CheckpointReport
    errors: tuple[Finding, ...]
    files: Mapping[str, int]
    placed: bool

    @property
    def bytes_written(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def stored_dtype(checkpoint: Checkpoint) -> tuple[str, str]:
    """The dtype to write a child of ``checkpoint`` in, and a sentence where that is not how each weight is stored."""
    sizes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        if info.kind != "buffer" and is_floating(info.dtype):
            sizes[info.dtype] += info.numel
    if not sizes:
        return "float32", ""
    main = sizes.most_common(1)[0][0]
    written = "bfloat16" if main.startswith("float8") else main
    said = (
        f"weights are stored in {' and '.join(sorted(sizes))}, and written in {written}"
        if {*sizes} != {written}
        else ""
    )
    return written, said


def plan_json(plan: PruningPlan, made: Mapping[str, Any]) -> str:
    """The plan with how it was made; ``pruners.plan_file`` reads it back as the plan alone."""
    text = plan_to_json(plan)
    return '{\n "made": ' + json.dumps(made, ensure_ascii=False) + "," + text[1:]


def save_plan(path: str, plan: PruningPlan, made: Mapping[str, Any]) -> None:
    """Writes ``plan_json`` to a new file, which has its name only once it is whole.

    Raises:
        CannotSave: no space is left, or the place cannot be written to.
        UsageError: something has appeared at ``path`` in the meantime.
    """
    with workplace(path, CannotSave) as work:
        made_here = os.path.join(work, PLAN)
        _write_plan(made_here, plan, made)
        move_into_place(made_here, path, label=PLAN_LABEL)


def _write_plan(path: str, plan: PruningPlan, made: Mapping[str, Any]) -> None:
    with open(path, "x", encoding="utf-8") as stream:
        stream.write(plan_json(plan, made))


def save_pruned(
    model: Any,
    out: str,
    *,
    source: Checkpoint,
    dtype: str,
    plan: PruningPlan,
    made: Mapping[str, Any],
    like: bool,
    check: Callable[[str], tuple[CheckpointReport, tuple[Finding, ...]]],
    force: bool,
    progress: Progress | None = None,
) -> Saved:
    """Writes ``model`` beside ``out``, runs ``check`` on it, and moves it into place when that finds no error.

    check: the report on the folder, and the errors that speak against it.
    source: the checkpoint that was pruned, for its tokenizer and licence. like: a pickle as LLM-Pruner writes it lies
    in the folder too. force: it gets its place with errors, too.

    Raises:
        CannotSave: no space is left, or the place cannot be written to.
        CannotExport: no form holds the model.
        UsageError: something has appeared at ``out`` in the meantime.
    """
    with workplace(out, CannotSave) as work:
        folder = os.path.join(work, "out")
        os.mkdir(folder)
        written = write_model(model, folder, source=source, dtype=dtype, force=force, progress=progress)
        _write_plan(os.path.join(folder, PLAN), plan, made)
        report, errors = check(folder)
        if report.error is not None:
            raise CannotSave(f"what was written cannot be checked: {report.error}; nothing was written")
        placed = force or not errors
        if like and placed:
            _pickle(folder, progress)
        files = _files(folder)
        if placed:
            move_into_place(folder, out, label=LABEL)
    return Saved(written, replace(report, path=out), errors, files, placed)


def _pickle(folder: str, progress: Progress | None) -> None:
    """``{'model': …, 'tokenizer': …}`` in a folder of its own, where no loader of the folder sees a second model."""
    made = os.path.join(os.path.dirname(folder), "pytorch_model.bin")
    export(folder, made, like=LIKE, progress=progress)
    os.mkdir(os.path.join(folder, LIKE))
    os.rename(made, os.path.join(folder, PICKLE))


def _files(folder: str) -> dict[str, int]:
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            found[printable(os.path.relpath(path, folder))] = os.path.getsize(path)
    return dict(sorted(found.items()))
