"""The pre-commit hook: changed files -> the checkpoints that they belong to -> one check, without torch.

``python -m gqacheck.integrations.pre_commit [options] FILE ...``; options are those of ``gqacheck check``, with their
values behind ``=`` (``--expect-ratio=7:1``), because pre-commit puts the files last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

FOLDER_FILES = frozenset(
    ("config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
     "pytorch_model.bin.index.json")
)  # fmt: skip
"""Files that make the folder around them a checkpoint."""
WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``gqacheck`` on the checkpoints to which the named files belong; 0 when there are none."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = [word for word in words if word.startswith("-")]
    found = checkpoints_of([word for word in words if not word.startswith("-")])
    if not found:
        return 0
    from gqacheck.cli import main as check

    return check(["check", *found, *options])


def checkpoints_of(files: Sequence[str]) -> list[str]:
    """Folders and files to check, sorted: a shard, a config or an index stands for its folder."""
    found = set()
    for file in files:
        folder = os.path.dirname(file)
        weights = file.lower().endswith(WEIGHTS)
        inside = os.path.isfile(os.path.join(folder, "config.json")) and _has_weights(folder)
        if inside and (weights or os.path.basename(file) in FOLDER_FILES):
            found.add(folder or ".")
        elif weights and os.path.lexists(file):
            found.add(file)
    return sorted(found)


def _has_weights(folder: str) -> bool:
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return False
    return any(name.lower().endswith(WEIGHTS) for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
