"""Whole-process measurements: wall-clock seconds and peak memory of commands run in turn, compared pair by pair."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """One finished process: wall-clock seconds, peak resident MiB, what it printed, its exit code.

    A child's peak counts from its fork, so the measuring process must itself stay small: import nothing heavy here.
    """

    seconds: float
    peak_mib: float
    output: str
    code: int = 0


def run_once(command: Sequence[str]) -> Run:
    """One process from start to reaping. Raises RuntimeError when it is killed by a signal."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode < 0:
        raise RuntimeError(f"{command[0]} was ended by signal {-child.returncode}")
    return Run(seconds, usage.ru_maxrss / 1024, output, child.returncode)


def side_by_side(commands: Mapping[str, Sequence[str]], *, rounds: int = 7) -> dict[str, list[Run]]:
    """``rounds`` runs of each command, taken in turn after one warm-up, so that drift hits all alike."""
    for command in commands.values():
        run_once(command)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run_once(command))
    return runs


def median_seconds(runs: Sequence[Run]) -> float:
    """Median wall-clock seconds."""
    return statistics.median(run.seconds for run in runs)


def median_ratio(over: Sequence[Run], under: Sequence[Run]) -> float:
    """Median of the pairwise time ratios ``over / under``."""
    return statistics.median(a.seconds / b.seconds for a, b in zip(over, under, strict=True))


def peak(runs: Sequence[Run]) -> float:
    """Largest peak memory of any run, MiB."""
    return max(run.peak_mib for run in runs)
