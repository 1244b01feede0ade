"""``python -m benchmarks.static``: the static check beside what people run today, in one go.

Peers: ``torch.load(mmap=True)`` of the whole module followed by a loop over its layers (the usual script), and the
standard library walking the pickle's opcodes without understanding them (the floor). Times are whole processes.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.full_size import write_sharded_folder
from benchmarks.measure import Run, median_ratio, median_seconds, peak, run_once, side_by_side

GQACHECK = [sys.executable, "-m", "gqacheck"]
PEER = """
import sys, torch
found = torch.load(sys.argv[1], mmap=True, weights_only=False)
for layer in found["model"].model.layers:
    a = layer.self_attn
    q, k, v = (p.weight.shape[0] // a.head_dim for p in (a.q_proj, a.k_proj, a.v_proj))
    assert q // k == a.num_key_value_groups and k == v
"""
FLOOR = """
import sys, zipfile, pickletools
with zipfile.ZipFile(sys.argv[1]) as archive:
    name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
    with archive.open(name) as pickle:
        for opcode, argument, position in pickletools.genops(pickle):
            pass
"""
BARE_IMPORTS = "import argparse, json, zipfile, pickletools"


def main() -> int:
    """Build the files, measure, print one table; 0."""
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="gqacheck-bench-") as scratch:
        folder = Path(scratch)
        for size in ("8B", "70B"):
            for tokenizer in (False, True):
                told = f"{size} whole-module .bin" + (" with its tokenizer" if tokenizer else "")
                path = folder / f"{size}-{tokenizer}.bin"
                build = [sys.executable, "-m", "benchmarks.full_size", size, str(path)]
                subprocess.run(build + ["--tokenizer"] * tokenizer, check=True)
                _compare_bin(told, path, rounds=7 if size == "8B" else 3)
                path.unlink()
        _compare_folder("405B sharded safetensors", write_sharded_folder("405B", folder / "405B"))
    _compare_version()
    return 0


def _compare_bin(told: str, path: Path, *, rounds: int) -> None:
    commands = {
        "gqacheck": [*GQACHECK, str(path)],
        "torch.load + loop": [sys.executable, "-c", PEER, str(path)],
        "opcodes only": [sys.executable, "-c", FLOOR, str(path)],
    }
    runs = side_by_side(commands, rounds=rounds)
    print(f"\n{told}: {path.stat().st_size / 1e9:.2f} GB, {_bytes_read(path) / 1000:.0f} KB read")
    peer = runs["torch.load + loop"]
    if peer[0].code:
        print(f"  torch.load + loop fails here: {peer[0].output.strip().splitlines()[-1][:110]}")
        del runs["torch.load + loop"]
    _table(runs)
    if not peer[0].code:
        print(f"  torch.load / gqacheck    {median_ratio(peer, runs['gqacheck']):6.1f}x   (wanted >= 25)")
    print(f"  gqacheck / opcodes only  {median_ratio(runs['gqacheck'], runs['opcodes only']):6.1f}x   (wanted <= 3)")


def _compare_folder(told: str, path: Path) -> None:
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"\n{told}: {size / 1e9:.1f} GB, {_bytes_read(path) / 1000:.0f} KB read")
    _table(side_by_side({"gqacheck": [*GQACHECK, str(path)]}, rounds=5))


def _compare_version() -> None:
    runs = side_by_side(
        {"gqacheck --version": [*GQACHECK, "--version"], "bare imports": [sys.executable, "-c", BARE_IMPORTS]},
        rounds=15,
    )
    print(f"\nstart-up: gqacheck --version beside python -c '{BARE_IMPORTS}'")
    _table(runs)
    ratio = median_ratio(runs["gqacheck --version"], runs["bare imports"])
    print(f"  ratio                    {ratio:6.2f}x   (wanted <= 1.5)")


def _table(runs: dict[str, list[Run]]) -> None:
    for name, found in runs.items():
        print(f"  {name:<22} {median_seconds(found) * 1000:8.0f} ms   {peak(found):7.1f} MiB peak")


def _bytes_read(path: Path) -> int:
    report = json.loads(run_once([*GQACHECK, "--format", "json", str(path)]).output)
    return int(report["checkpoints"][0]["bytes_read"])


if __name__ == "__main__":
    sys.exit(main())
