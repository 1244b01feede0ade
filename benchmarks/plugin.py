"""What the pytest plugin costs a run that does not use it: ``pytest --collect-only`` on an empty project.

    python -m benchmarks.plugin

With and without (``-p no:gqacheck``) take turns, each in a process of its own.
"""

from __future__ import annotations

import sys
import tempfile

from benchmarks.measure import median_ratio, median_seconds, side_by_side

ROUNDS = 25


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder]
        runs = side_by_side({"with": command, "without": [*command, "-p", "no:gqacheck"]}, rounds=ROUNDS)
    ratios = sorted(a.seconds / b.seconds for a, b in zip(runs["with"], runs["without"], strict=True))
    print(f"with the plugin  {1000 * median_seconds(runs['with']):7.1f} ms (median of {ROUNDS})")
    print(f"without it       {1000 * median_seconds(runs['without']):7.1f} ms")
    quartiles = f"{ratios[ROUNDS // 4]:.3f} to {ratios[-ROUNDS // 4]:.3f}"
    print(f"ratio            {median_ratio(runs['with'], runs['without']):7.3f} (quartiles {quartiles})")


if __name__ == "__main__":
    main()
