"""What is asked of one check, and how it becomes one value from a command line, a settings file or Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gqacheck.errors import UsageError
from gqacheck.flags import FLAGS, Flag, suggestion
from gqacheck.geometry.facts import Expectations
from gqacheck.rules.rule import Severity

if TYPE_CHECKING:
    from gqacheck.runtime.run import Progress


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asks of one check; the names are those of the command line."""

    base: str | None = None
    config: str | None = None
    family: str | None = None
    head_dim: int | None = None
    expect: Expectations = field(default_factory=Expectations)
    ppl: tuple[str, ...] = ()
    generate: bool = False
    consistency: bool = False
    tokenizer: str | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: Severity = Severity.ERROR
    require: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    batch_size: int | None = None
    seed: int = 0
    limit: int | None = None
    no_early_stop: bool = False
    progress: Progress | None = None
    values: bool = False
    known: frozenset[str] = frozenset()
    """Fingerprints of findings that are known, and do not fail the check."""

    @property
    def runs(self) -> bool:
        """Whether the model is to be run at all."""
        return bool(self.ppl) or self.generate or self.consistency


_PLAIN = (
    "base", "config", "family", "head_dim", "ppl", "tokenizer", "select", "ignore", "require", "device", "dtype",
    "device_map", "batch_size", "seed", "limit", "no_early_stop", "generate", "consistency", "values",
)  # fmt: skip
"""Fields of ``Options`` that are options of the command line as they stand."""


def make_options(given: Mapping[str, Any], **more: Any) -> Options:
    """``Options`` of what was given on the command line or in a settings file; ``more`` are fields of ``Options``."""
    if given.get("all_runtime"):
        given = {"ppl": ("smoke",), **given, "generate": True, "consistency": True}
    return Options(
        expect=Expectations(given.get("expect_layers"), given.get("expect_ratio"), given.get("max_ppl_ratio")),
        fail_on=Severity(given.get("fail_on", "error")),
        **{key: given[key] for key in _PLAIN if key in given},
        **more,
    )


def from_python(**given: Any) -> dict[str, Any]:
    """Keywords of ``check`` as the command line would have read them; None is what was not given.

    Raises UsageError for a value that makes no sense, under the keyword's own name, and for a keyword that there is
    not.
    """
    found = {}
    for key, value in given.items():
        flag = FLAGS.get(f"--{key.replace('_', '-')}")
        if flag is None:
            raise UsageError(f"there is no option {key[:60]!r}{suggestion(key, [one.key for one in FLAGS.values()])}")
        if value is not None:
            found[key] = read_value(flag, value, key)
    return found


def read_value(flag: Flag, value: Any, name: str) -> Any:
    """A value of Python or TOML as the command line would have read it. Raises UsageError, in which it is ``name``."""
    if not flag.metavar:
        if isinstance(value, bool):
            return value
        raise UsageError(f"{name} takes true or false, not {_shown(value)}")
    if flag.repeat:
        items = ["smoke"] if value is True else [] if value is False else _listed(value, name)
        return tuple(flag.convert(name, item) for item in items)
    if flag.metavar in ("NAMES", "CODES"):
        names = _listed(value, name)
        return flag.convert(name, ",".join(names)) if names else ()
    if flag.metavar == "Q:KV" and isinstance(value, tuple | list):
        value = ":".join(str(number) for number in value)
    if flag.path and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool) or not _is_one(value):
        raise UsageError(f"{name} takes {flag.metavar}, not {_shown(value)}")
    if value == "":
        raise UsageError(f"{name} takes {flag.metavar}, not nothing")
    return flag.convert(name, str(value).removeprefix("torch."))


def _listed(value: Any, name: str) -> list[str]:
    """One string, or several."""
    if isinstance(value, str):
        return [value]
    items = list(value) if isinstance(value, Iterable) else [value]
    for item in items:
        if not isinstance(item, str) or not item:
            raise UsageError(f"{name} takes names, not {_shown(item)}")
    return items


def _is_one(value: Any) -> bool:
    """Whether a value is a word or a number; a torch.dtype and a torch.device are words."""
    return isinstance(value, str | int | float) or type(value).__module__ in ("torch", "numpy")


def _shown(value: Any) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
