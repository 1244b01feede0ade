"""``gqacheck demo``: a tiny parent with a broken and a healthy child, written with the standard library alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gqacheck.errors import UsageError
from gqacheck.pipeline import check
from gqacheck.report.document import Block, Span, line
from gqacheck.report.text import checkpoint_blocks
from gqacheck.testing.sketch import Sketch, sketch_llama

DEFAULT_FOLDER = "gqacheck-demo"
N_LAYERS, GROUP_SIZE = 6, 4
CUT_LAYERS = range(1, 5)


class Shows(Protocol):
    """Whoever can show blocks: the command line's screen."""

    def show(self, blocks: Sequence[Block], colour: str) -> None:
        """Show the blocks."""


@dataclass(frozen=True, slots=True)
class DemoFile:
    """One checkpoint of the demo: where it is and, in one line, what was done to it."""

    path: Path
    story: str


def write_demo(folder: str | os.PathLike[str] = DEFAULT_FOLDER) -> tuple[DemoFile, ...]:
    """The demo's checkpoints, written into ``folder``: parent, broken child, healthy child.

    A 32:8 model of six layers loses two of eight KV heads in layers 1 to 4. The healthy child drops them with the
    query heads that read them. In the broken one, layer 3 was left at 31:7, which ``31 // 7 == 4`` waves through, and
    layer 2's q_proj still says how wide it was.

    Raises: UsageError when ``folder`` exists already; nothing is overwritten.
    """
    target = Path(folder)
    if target.exists():
        raise UsageError(
            f"{target} exists already and nothing is overwritten; name another folder: gqacheck demo FOLDER"
        )
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    parent = sketch_llama(
        n_layers=N_LAYERS, hidden_size=128, n_q_heads=32, n_kv_heads=8, head_dim=4, intermediate_size=224, seed=1
    )
    (beside / "healthy").mkdir(parents=True)
    (beside / "broken").mkdir()
    parent.write_folder(beside / "parent")
    _healthy(parent).write_module(beside / "healthy" / "pytorch_model.bin")
    _broken(parent).write_module(beside / "broken" / "pytorch_model.bin")
    beside.rename(target)
    return (
        DemoFile(target / "parent", "the parent: 32 query heads over 8 KV heads in every layer"),
        DemoFile(
            target / "broken" / "pytorch_model.bin",
            "a child cut to 24:6 in layers 1-4, but layer 3 was left at 31:7 and layer 2 has a stale out_features",
        ),
        DemoFile(
            target / "healthy" / "pytorch_model.bin",
            "a child cut to 24:6 in layers 1-4, whole KV groups, everything in step",
        ),
    )


def run(folder: str | None, screen: Shows, colour: str) -> int:
    """Write the demo and show the check of each checkpoint, the parent's as the base of its children; 0.

    Raises: UsageError when ``folder`` exists already.
    """
    parent, *children = write_demo(folder or DEFAULT_FOLDER)
    for number, made in enumerate((parent, *children)):
        report = check(made.path, base=parent.path if number else None)
        command = f"gqacheck {made.path}" + (f" --base {parent.path}" if number else "")
        story = [line(Span(f"# {made.story}", "dim")), line(Span(f"$ {command}", "strong"))]
        screen.show(
            [*story, *checkpoint_blocks(report, named=False), line(f"exit code {report.exit_code}"), line()], colour
        )
    return 0


def _healthy(parent: Sketch) -> Sketch:
    child = parent.copy()
    for index in CUT_LAYERS:
        child.cut_heads(index, n_q_heads=6 * GROUP_SIZE, n_kv_heads=6)
        child.cut_mlp(index, 168)
    return child


def _broken(parent: Sketch) -> Sketch:
    child = _healthy(parent)
    child.tensors.update({n: t for n, t in parent.tensors.items() if n.startswith("model.layers.3.self_attn")})
    child.cut_heads(3, n_q_heads=31, n_kv_heads=7)
    child.modules["model.layers.2.self_attn.q_proj"].attributes["out_features"] = 128
    return child
