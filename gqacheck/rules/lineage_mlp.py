"""GQA604: do gate, up and down hold at each position the same channel of the parent?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import NOWHERE, Channels, LayerOrigin, MlpOrigin
from gqacheck.rules.heads import counted, listed
from gqacheck.rules.origins import (
    REPAIR,
    SOURCE,
    cause_of,
    has_misplaced,
    layers_with,
    misplaced,
    moved,
    needs_told,
    tensors_of,
    triples,
)
from gqacheck.rules.rule import Quantity, Violation
from gqacheck.text import printable

_EXPERTS_SHOWN = 4


def needs_channels(subject: Subject) -> tuple[str, str] | None:
    """A layer with two MLP projections whose channels are known."""
    if has_misplaced(subject, "gate", "up"):
        return None
    return needs_told(subject, "MLP channels", lambda layer: any(len(parts) > 1 for _, parts in triples(layer)))


@dataclass(frozen=True, slots=True)
class _Apart:
    """One MLP whose projections disagree: at how many positions, the first of them, and what stands there."""

    mlp: MlpOrigin
    parts: tuple[Channels, ...]
    n: int
    first: int

    @property
    def width(self) -> int:
        """Channels that were compared."""
        return min(len(part.parents) for part in self.parts)

    @property
    def example(self) -> str:
        """What stands at the first position."""
        return listed(
            [
                f"{'down column' if part.role == 'down' else f'{part.role} row'} {part.parents[self.first]}"
                for part in self.parts
                if part.parents[self.first] != NOWHERE
            ]
        )


def mlp_misaligned(subject: Subject) -> Iterator[Violation]:
    """Gate, up and down at one position come from different channels of the parent.

    What it checks
        For every channel of the MLP which row of the parent's gate and up and which column of its down stands there;
        all must be one and the same. In a mixture of experts each expert is judged by itself.

    Why it matters
        A channel is act(gate · x) * (up · x), written back by its column of down. With rows of other channels the
        product means nothing, and with another column it is written in the wrong direction.

    What you would see
        Nothing raises and the widths agree (GQA301 and GQA302 are silent). It is what a pruner leaves that chooses
        channels for gate and up and cuts down by its first columns.

    Fix
        `gqacheck repair CKPT --base PARENT -o OUT`. In the pruner, index gate's and up's rows and down's columns with
        one list of channels.

    Known misses
        A down that was rewritten as a whole, as a least-squares reconstruction does, matches nothing and is not
        accused. Channels that match nothing in the parent are GQA606's.

    Source
        The gated MLP of Llama and its kin: down(act(gate(x)) * up(x)).
    """
    for layer, _ in layers_with(subject):
        yield from misplaced(layer, "gate", "up")
        apart = [found for mlp, parts in triples(layer) if (found := _apart(mlp, parts)) is not None]
        if apart:
            yield _violation(layer, apart)


def _apart(mlp: MlpOrigin, parts: tuple[Channels, ...]) -> _Apart | None:
    if all(part.parents == parts[0].parents for part in parts):
        return None
    wrong = [
        position
        for position, parents in enumerate(zip(*(part.parents for part in parts), strict=False))
        if len(set(parents) - {NOWHERE}) > 1
    ]
    return _Apart(mlp, parts, len(wrong), wrong[0]) if wrong else None


def _violation(layer: LayerOrigin, apart: list[_Apart]) -> Violation:
    first, total = apart[0], sum(found.n for found in apart)
    if len(layer.mlps) == 1 and first.mlp.expert is None:
        verb = "joins" if first.n == 1 else "join"
        message = f"{first.n} of {counted(first.width, 'MLP channel')} {verb} different channels of the parent: "
        message += f"position {first.first} has {first.example}"
    else:
        message = f"{len(apart)} of {counted(len(layer.mlps), 'expert')} "
        message += f"{'joins' if len(apart) == 1 else 'join'} different channels of the parent: "
        message += "; ".join(_expert(found, example=found is first) for found in apart[:_EXPERTS_SHOWN])
        message += f"; and {len(apart) - _EXPERTS_SHOWN} more" if len(apart) > _EXPERTS_SHOWN else ""
    return Violation(
        message=message + moved(layer),
        layer=layer.index,
        tensors=tensors_of(*(part for found in apart for part in found.parts)),
        expected=Quantity(0, "channels of different origin"),
        actual=Quantity(total, "channels of different origin"),
        source=SOURCE,
        consequence="nothing raises; those channels compute noise and add it to the residual stream",
        fix=REPAIR,
        cause=cause_of(layer, "gate_proj", "up_proj", "down_proj"),
    )


def _expert(found: _Apart, *, example: bool) -> str:
    mlp = found.mlp
    name = f"expert {mlp.expert}" if isinstance(mlp.expert, int) else f"the {printable(mlp.expert or 'dense', 40)} one"
    if mlp.parent_expert is not None and mlp.parent_expert != mlp.expert:
        name += f" (parent expert {printable(mlp.parent_expert, 40)})"
    where = f" (position {found.first} has {found.example})" if example else ""
    return f"{name} in {found.n} of {counted(found.width, 'channel')}{where}"
