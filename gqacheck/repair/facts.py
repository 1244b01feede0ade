"""A repair as plain facts: what will stand where, what was done, and what could not be.

A *block* is what one position of a projection holds: for q, k and v the rows of one head, for o the columns of one
query head, for gate, up and down one channel. Positions are the child's; heads, channels and layers that are named are
the parent's.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from gqacheck.errors import GqacheckError
from gqacheck.geometry.lines import Kind
from gqacheck.geometry.origins import NOWHERE
from gqacheck.result import CheckpointReport


class CannotRepair(GqacheckError):
    """The request makes sense and cannot be fulfilled; nothing was written (exit 3)."""


@dataclass(frozen=True, slots=True)
class Take:
    """For each position afterwards where its block comes from.

    child: the position that it has in the checkpoint, ``NOWHERE`` where the block comes from the parent. parent: which
    block of the parent's stands there, ``NOWHERE`` where that is not known (then child is).
    orders: position -> for each line of a block that comes from the parent the parent's line, where the checkpoint
    keeps the lines inside a head in another order.
    """

    child: array[int]
    parent: array[int]
    orders: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.child)

    @property
    def replaced(self) -> int:
        """Blocks that come from the parent."""
        return sum(position == NOWHERE for position in self.child)

    @property
    def moved(self) -> int:
        """Blocks of the checkpoint that stand elsewhere afterwards."""
        return sum(position not in (NOWHERE, place) for place, position in enumerate(self.child))

    def leaves(self, n_blocks: int) -> bool:
        """Whether a projection of ``n_blocks`` blocks stays as it is."""
        return len(self.child) == n_blocks and all(position == place for place, position in enumerate(self.child))


def stay(n_blocks: int) -> Take:
    """Every block where it is."""
    return Take(array("i", range(n_blocks)), array("i", [NOWHERE]) * n_blocks)


@dataclass(frozen=True, slots=True)
class RoleTake:
    """What one projection, or one vector beside it, is made of afterwards.

    role: ``q k v o gate up down``. kind: the weight or a vector that goes with it. expert, parent_expert: of an MLP's
    experts, None for the dense one. before: blocks it has now (0 when it is missing). whole: why every block comes from
    the parent although the checkpoint has some that could stay, "" otherwise.
    """

    role: str
    take: Take
    before: int
    kind: Kind = "weight"
    expert: int | str | None = None
    parent_expert: int | str | None = None
    whole: str = ""

    @property
    def changes(self) -> bool:
        """Whether the stored values change."""
        return not self.take.leaves(self.before)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one layer; a layer without a plan stays byte for byte.

    index: the child's; parent: the parent's layer. faults: what is wrong, in a few words each. takes: every projection
    and vector of the parts that are repaired. heads: (query heads, KV heads) afterwards, None when attention stays.
    counts: what becomes of head counts that could not stay, "" when they do.
    """

    index: int
    parent: int
    faults: tuple[str, ...]
    takes: tuple[RoleTake, ...]
    heads: tuple[int, int] | None = None
    counts: str = ""

    @property
    def changed(self) -> tuple[RoleTake, ...]:
        """The takes that change stored values."""
        return tuple(take for take in self.takes if take.changes)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that cannot be mended. ``code``: the rule that found it, "" when none did."""

    sentence: str
    layers: tuple[int, ...] = ()
    code: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is changed. ``what``: one sentence, without the layers."""

    what: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """How the written checkpoint's logits compare with those of the parent with everything else masked.

    ran: False when it was not compared; ``reason`` says why. difference: largest one, as a share of the standard
    deviation of the reference's logits; allowed: what it may be. expanded: the tensors are not the parent's bit by bit,
    so the reference holds the checkpoint's own blocks in the parent's places.
    """

    ran: bool
    reason: str = ""
    difference: float | None = None
    allowed: float | None = None
    tokens: int = 0
    expanded: bool = False

    @property
    def equal(self) -> bool:
        """Whether it was compared and the logits are the same but for rounding."""
        return self.ran and self.difference is not None and self.allowed is not None and self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Everything that a repair did, or would do.

    out: what was written, None when nothing was. changes: what was (or would be) changed. left_alone: what was seen
    and not touched. refused: what cannot be mended; nothing is written then. before: the check of the checkpoint;
    after: of what was written. plans: the layers whose tensors change. reference: the comparison of logits, None
    without a parent.
    """

    path: str
    base: str | None
    out: str | None
    dry_run: bool
    before: CheckpointReport
    changes: tuple[Change, ...] = ()
    left_alone: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    plans: tuple[LayerPlan, ...] = ()
    after: CheckpointReport | None = None
    reference: Reference | None = None
    bytes_written: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 when it was repaired, would be, or needs nothing; 3 when it cannot be."""
        return 3 if self.refused else 0
