"""What a file of torch.save says, before it becomes a Checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gqacheck.checkpoint import ConfigInfo, Defect, ModuleInfo, TensorInfo, TokenizerInfo

MAX_IGNORED = 64


class Ignored:
    """Sentences on what was left alone, one per entry; past 64 they are only counted."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        """Note one sentence."""
        if len(self._lines) < MAX_IGNORED:
            self._lines.append(line)
        else:
            self._more += 1

    def lines(self) -> tuple[str, ...]:
        """The sentences, and how many there would have been more."""
        return (*self._lines, f"and {self._more} entries more") if self._more else tuple(self._lines)


@dataclass(frozen=True, slots=True)
class TorchFile:
    """The facts of one file that torch.save wrote, zip or legacy.

    kind: ``module`` (a whole-module pickle), ``state-dict``, or ``other``: an optimizer state, a scheduler, training
        arguments, a TorchScript archive, …, told in ``description`` (``an optimizer state``, ``a dict with the keys
        'a', 'b'``); tensors and modules are then empty.
    tensors, modules, config, generation_config, tokenizer, globals, unwrapped, defects, ignored: as in Checkpoint.
    """

    kind: Literal["module", "state-dict", "other"]
    description: str = ""
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    modules: Mapping[str, ModuleInfo] = field(default_factory=dict)
    config: ConfigInfo | None = None
    generation_config: ConfigInfo | None = None
    tokenizer: TokenizerInfo | None = None
    globals: tuple[str, ...] = ()
    unwrapped: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()
    ignored: tuple[str, ...] = ()
