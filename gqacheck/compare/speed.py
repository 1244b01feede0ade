"""The speed rows: every checkpoint that was checked here and can be built runs in turns with the base, or the first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from gqacheck.checkpoint import Checkpoint
from gqacheck.compare.facts import Column, Speed, SpeedRow
from gqacheck.geometry.facts import Geometry
from gqacheck.options import Options
from gqacheck.pipeline import UNRUNNABLE
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity

if TYPE_CHECKING:
    from gqacheck.runtime.running import Running
    from gqacheck.runtime.speed import Entrant, Timings


def run_speed(
    columns: Sequence[Column], reports: Sequence[CheckpointReport | None], options: Options
) -> tuple[SpeedRow | None, tuple[Column, ...]]:
    """The speed of every column that can be run, and the columns with what kept the others from it.

    Columns of saved reports have none. The reference is the base, or else the first checkpoint that can run.

    Raises:
        MissingDependency: torch or transformers is not installed.
        UsageError: no such device or dtype.
    """
    from gqacheck.runtime.running import check_device, require_run_extra

    require_run_extra("--speed")
    device = check_device(options.device)
    entrants, numbers, found = [], [], list(columns)
    for number, report in enumerate(reports):
        if report is None:
            continue
        why = _unrunnable(report)
        if why or report.checkpoint is None or report.geometry is None:
            found[number] = _without(columns[number], f"not run: {why or 'it could not be read'}")
            continue
        entrants.append(_entrant(columns[number].name, report.checkpoint, report.geometry, options, device))
        numbers.append(number)
    if not entrants:
        return None, tuple(found)
    from gqacheck.runtime.speed import measure_speed

    race = measure_speed(entrants, device=device, seed=options.seed, progress=options.progress)
    cells: list[Speed | None] = [None] * len(columns)
    for number in numbers:
        timings = race.timings[columns[number].name]
        if timings.problem:
            found[number] = _without(found[number], timings.problem)
        elif timings.prefill:
            cells[number] = _speed(timings)
    return SpeedRow(race.settings, numbers[0], tuple(cells)), tuple(found)


def _unrunnable(report: CheckpointReport) -> str:
    codes = [f.code for f in report.findings if f.severity is Severity.ERROR and f.code in UNRUNNABLE]
    return f"{', '.join(dict.fromkeys(codes))} would stop it" if codes else ""


def _without(column: Column, problem: str) -> Column:
    return replace(column, missing=(*column.missing, "speed"), problem=column.problem or problem)


def _entrant(name: str, checkpoint: Checkpoint, geometry: Geometry, options: Options, device: str) -> Entrant:
    from gqacheck.runtime.running import Request, choose_dtype, rebuilt
    from gqacheck.runtime.speed import Entrant

    dtype = choose_dtype(checkpoint, options.dtype, device)
    request = Request(device=device, dtype=options.dtype)

    def load() -> AbstractContextManager[Running]:
        return rebuilt(checkpoint, geometry, request, dtype=dtype, encoder=None)

    parameters = checkpoint.parameters or 0
    return Entrant(name, load, parameters * dtype.itemsize)


def _speed(timings: Timings) -> Speed:
    def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
        return tuple(a / b for a, b in zip(ours, theirs, strict=False))

    return Speed(
        tuple(timings.prefill),
        tuple(timings.decode),
        ratios(timings.prefill, timings.reference_prefill),
        ratios(timings.decode, timings.reference_decode),
    )
