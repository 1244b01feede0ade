"""``python -m benchmarks.export``: ``gqacheck export`` beside torch.load and save_pretrained, and beside cp.

Real bytes on disk, dropped from the page cache before every run. gqacheck's times include what nobody else does: it
reads back and compares every byte, checks the folder, runs source and folder side by side, and syncs to the disk.

    python -m benchmarks.export [ROUNDS]        a pruned checkpoint of 2 GB, uniform and not (part of make bench)
    python -m benchmarks.export --8b [ROUNDS]   a Llama of 8B, 16 GB, beside cp (make bench-8b; needs 33 GB of disk)
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Run, median_ratio, median_seconds, peak

PEER = """
import sys, torch
torch.load(sys.argv[1], weights_only=False)["model"].save_pretrained(sys.argv[2])
"""
COPY = 'mkdir "$1" && cp "$0" "$1/copy" && sync "$1/copy"'
COMPARE = COPY + ' && cmp "$0" "$1/copy"'
_EVERY = 0.02


def main() -> int:
    """Write the checkpoints, measure, print one table each; 0."""
    words = [word for word in sys.argv[1:] if word != "--8b"]
    large = "--8b" in sys.argv
    rounds = int(words[0]) if words else 1 if large else 3
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="gqacheck-bench-", dir=os.environ.get("TMPDIR")) as scratch:
        for size, kind in [("8B", "whole")] if large else [("2GB", "uniform"), ("2GB", "non-uniform")]:
            path = Path(scratch) / f"{size}-{kind}.bin"
            # in a process of its own, so that the one that measures stays small
            subprocess.run([sys.executable, "-m", "benchmarks.pruned", size, kind, str(path)], check=True)
            _table(f"{size}, {kind}", path, Path(scratch) / "out", rounds, large=large)
            path.unlink()
    return 0


def _table(told: str, path: Path, out: Path, rounds: int, *, large: bool) -> None:
    commands = {"gqacheck export": [sys.executable, "-m", "gqacheck", "export", str(path), str(out)]}
    if large:
        commands |= {"cp, sync": ["sh", "-c", COPY, str(path), str(out)]}
        commands |= {"cp, sync, cmp": ["sh", "-c", COMPARE, str(path), str(out)]}
    else:
        commands |= {"torch.load + save_pretrained": [sys.executable, "-c", PEER, str(path), str(out)]}
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    seen: dict[str, list[_Seen]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            _forget(path)
            run, more = _watched(command)
            if run.code:
                raise RuntimeError(f"{name} ended with {run.code}: {run.output.strip()[-2000:]}")
            runs[name].append(run)
            seen[name].append(more)
            shutil.rmtree(out)
    size = path.stat().st_size
    print(f"\n{told}: {size / 1e9:.2f} GB; exported {_said(runs['gqacheck export'][0].output)}")
    ours = runs["gqacheck export"]
    for name, found in runs.items():
        seconds, cpu = median_seconds(found), statistics.median(each.cpu_seconds for each in seen[name])
        ratio = "" if name == "gqacheck export" else f"; {median_ratio(found, ours):.2f}x the time"
        ratio += f", {peak(found) / peak(ours):.2f}x the memory" if ratio else ""
        print(
            f"  {name:<28} {seconds:7.1f} s, {size / 1e6 / seconds:5.0f} MB/s, {cpu:5.1f} s of processor; "
            f"{peak(found):5.0f} MiB peak, {max(each.private_mib for each in seen[name]):5.0f} without files{ratio}"
        )


def _said(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    return "; ".join(line for line in lines if line.startswith(("bytes ", "logits ")))


def _forget(path: Path) -> None:
    """Drop the file from the page cache, and let what others wrote reach the disk first."""
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one process: the most MiB that no file stands behind (RssAnon), and processor time, which waits for nobody."""

    private_mib: float
    cpu_seconds: float


def _watched(command: Sequence[str]) -> tuple[Run, _Seen]:
    """One process from start to reaping."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            most[0] = max(most[0], _anonymous(child.pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    run = Run(seconds, usage.ru_maxrss / 1024, output, child.returncode)
    return run, _Seen(most[0] / 1024, usage.ru_utime + usage.ru_stime)


def _anonymous(pid: int) -> int:
    """KiB that no file stands behind, 0 when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    sys.exit(main())
