"""An export as plain facts: in which form it was written, what was left out, and how it was verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from gqacheck.errors import GqacheckError
from gqacheck.export.content import Planned
from gqacheck.result import CheckpointReport

Way: TypeAlias = Literal["stock", "other-class", "own-code", "as-stored", "padded", "llm-pruner"]
"""``stock``: the family's own class. ``other-class``: a stock class of another family that computes the same.
``own-code``: a modelling file lies in the folder. ``as-stored``: no class was found to hold it against. ``padded``:
a stock class, with zeros where layers differ. ``llm-pruner``: a file, the live model pickled with its tokenizer."""


class CannotExport(GqacheckError):
    """The request makes sense and cannot be fulfilled; nothing was written (exit 3)."""


class Refused(Exception):
    """One way of writing the checkpoint does not fit it; the message says why, for the next way or for the user."""


@dataclass(frozen=True, slots=True)
class Padding:
    """What zeros were added and what they cost.

    heads, kv_heads, width, expert_width: query heads, KV heads, channels of a dense MLP and of a routed expert, in
    every layer now; 0 where none has such a part.
    parameters: those of the checkpoint; zeros: those that were added to them. kv_before, kv_after: numbers that the KV
    cache holds for one token.
    """

    heads: int
    kv_heads: int
    width: int
    expert_width: int
    parameters: int
    zeros: int
    kv_before: int
    kv_after: int


@dataclass(frozen=True, slots=True)
class Form:
    """What will be written: every tensor, made when its turn comes, the config and the files that go with it.

    way: see ``Way``. why: why it is not simply the family's own class, one clause; "" when it is. architecture: the
    class that loads it, "" when none was found. code: file name -> Python source. notes: what is not as it was stored.
    exact: whether its logits must be the source's but for the rounding of float32 itself. padding: what was added.
    """

    way: Way
    config: Mapping[str, Any]
    tensors: tuple[Planned, ...]
    architecture: str = ""
    why: str = ""
    code: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    exact: bool = True
    padding: Padding | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the written folder's logits compare with the source's, on the built-in text in float32.

    ran: False when they were not compared; ``reason`` says why. When they were, ``reason`` is what the source runs with
    that its config does not say. difference: the largest one, as a share of the standard
    deviation of the source's logits; allowed: what it may be. layer: the first layer that computes something else.
    tokens: positions compared. streamed: weights were read as they were needed.
    """

    ran: bool
    reason: str = ""
    difference: float | None = None
    allowed: float | None = None
    layer: str = ""
    tokens: int = 0
    dtype: str = "float32"
    streamed: bool = False

    @property
    def equal(self) -> bool:
        """Whether they were compared and are the same but for rounding."""
        return self.ran and self.difference is not None and self.allowed is not None and self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Everything that an export did.

    out: the folder. way, why, architecture: as in ``Form``. dtype: of the weights; several are joined by commas.
    files: what lies in the folder, in order of name. tokenizer: what became of it, one clause. notes: what is not as it
    was stored. cured: errors of the source that the folder does not have, as ``CODE message``. before, after: the
    checks of the source and of the folder. comparison: of the logits. padding: the zeros and their cost, None without.
    """

    path: str
    out: str
    way: Way
    why: str
    architecture: str
    dtype: str
    parameters: int
    shards: int
    files: tuple[str, ...]
    tokenizer: str
    notes: tuple[str, ...]
    cured: tuple[str, ...]
    before: CheckpointReport
    after: CheckpointReport
    comparison: Comparison
    bytes_written: int = 0
    seconds: float = 0.0
    padding: Padding | None = None

    @property
    def exit_code(self) -> int:
        """0: what could not be exported is an exception."""
        return 0
