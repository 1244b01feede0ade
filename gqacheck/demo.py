"""``gqacheck demo``: a tiny parent, two broken children and a healthy one, written with the standard library alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gqacheck.api import check
from gqacheck.errors import UsageError
from gqacheck.report.document import Block, Span, line
from gqacheck.report.text import checkpoint_blocks
from gqacheck.testing.cuts import take_channels, take_heads
from gqacheck.testing.sketch import Sketch, sketch_llama

DEFAULT_FOLDER = "gqacheck-demo"
N_LAYERS, GROUP_SIZE = 6, 4
CUT_LAYERS = range(1, 5)
KEPT_KV = (0, 2, 3, 4, 6, 7)
KEPT_CHANNELS = tuple(channel for channel in range(224) if channel % 4)


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
    """The demo's checkpoints, written into ``folder``: the parent, then two broken children and a healthy one.

    A 32:8 model of six layers loses two of eight KV heads and a quarter of its channels in layers 1 to 4. The healthy
    child drops them with the query heads that read them. The truncated one keeps the same KV heads and the first 24
    query heads: every shape is the healthy child's, and most query heads read a KV head that is not theirs. In the one
    with broken shapes, layer 3 was left at 31:7, which ``31 // 7 == 4`` waves through, and layer 2's q_proj still says
    how wide it was.

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
    beside.mkdir(parents=True)
    parent.write_folder(beside / "parent")
    children = {"shapes": _broken_shapes(parent), "truncated": _truncated(parent), "healthy": _healthy(parent)}
    for name, child in children.items():
        (beside / name).mkdir()
        child.write_module(beside / name / "pytorch_model.bin")
    beside.rename(target)
    stories = {
        "shapes": "a child cut to 24:6 in layers 1-4, but layer 3 is left at 31:7 and layer 2 has a stale out_features",
        "truncated": "a child cut to 24:6 in layers 1-4: six KV heads chosen, and q_proj cut to its first 24 heads",
        "healthy": "a child with the same shapes, cut by whole KV groups",
    }
    return (
        DemoFile(target / "parent", "the parent: 32 query heads over 8 KV heads in every layer"),
        *(DemoFile(target / name / "pytorch_model.bin", story) for name, story in stories.items()),
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
    return _cut(parent, [head * GROUP_SIZE + n for head in KEPT_KV for n in range(GROUP_SIZE)])


def _truncated(parent: Sketch) -> Sketch:
    return _cut(parent, range(len(KEPT_KV) * GROUP_SIZE))


def _cut(parent: Sketch, q: Iterable[int]) -> Sketch:
    child, kept = parent.copy(), list(q)
    for index in CUT_LAYERS:
        take_heads(child, index, q=kept, kv=KEPT_KV)
        take_channels(child, index, gate=KEPT_CHANNELS)
    return child


def _broken_shapes(parent: Sketch) -> Sketch:
    child = _healthy(parent)
    child.tensors.update({n: t for n, t in parent.tensors.items() if n.startswith("model.layers.3.self_attn")})
    take_heads(child, 3, q=range(31), kv=range(7))
    child.modules["model.layers.2.self_attn.q_proj"].attributes["out_features"] = 128
    return child
