"""Which checkpoints a run is asked to check, and with which options; what makes no sense is told before any test."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gqacheck.errors import UsageError

_VALUES = ("require", "fail_on")
_SWITCHES = ("generate", "consistency")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One checkpoint with what is asked of it. ``given`` as the command line would have it; all paths are absolute."""

    path: str
    given: Mapping[str, Any] = field(default_factory=dict)
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """The checkpoints of a run in order of their paths; ``left_out`` says why those of the settings are not there."""

    wanted: tuple[Wanted, ...] = ()
    left_out: str = ""


def read_asked(config: pytest.Config) -> Asked:
    """What the options and the settings ask for. Raises UsageError for what makes no sense."""
    from gqacheck.plugin.words import refuse_moved_root, tests_named
    from gqacheck.settings import find_settings

    here = str(config.invocation_params.dir)
    given = dict(_given(config.option, here))
    refuse_moved_root(config)
    named = _named(config.option.gqacheck, here)
    if not named and not given and tests_named(config):
        return Asked(left_out=_left_out(here))
    settings = find_settings(here)
    paths = named or settings.expand()
    if not paths and given:
        options = ", ".join(f"--gqacheck-{name.replace('_', '-')}" for name in given)
        where = f"checkpoints = [...] in {settings.source or 'gqacheck.toml'}"
        raise UsageError(f"{options}: no checkpoint is named to use it on; add --gqacheck=CKPT, or {where}")
    return Asked(tuple(_wanted(path, {**settings.of(path), **given}) for path in sorted(dict.fromkeys(paths))))


def _left_out(here: str) -> str:
    """What a run that checks none of the settings' checkpoints says of them; a mistake there need not stop it."""
    from gqacheck.settings import find_settings

    try:
        settings = find_settings(here)
    except UsageError as error:
        return f"checkpoints of the settings are not checked when tests are named, and could not be: {error}"
    return f"the checkpoints of {settings.source} are not checked when tests are named" if settings.checkpoints else ""


def _wanted(path: str, together: dict[str, Any]) -> Wanted:
    """Raises UsageError for options that contradict each other, and for a baseline that is none."""
    from gqacheck.baseline import read_baseline
    from gqacheck.options import make_options

    baseline = together.pop("baseline", "")
    make_options(together)
    if baseline:
        read_baseline(baseline)
    return Wanted(path, together, baseline)


def _named(paths: list[str] | None, here: str) -> list[str]:
    if paths and not all(paths):
        raise UsageError("--gqacheck got an empty path")
    return [os.path.abspath(os.path.join(here, path)) for path in paths or ()]


def _given(option: Any, here: str) -> Iterator[tuple[str, Any]]:
    """The options that were said, as the command line of gqacheck would have read them, with paths from ``here``."""
    from gqacheck.flags import FLAGS

    for name in _VALUES:
        value = getattr(option, f"gqacheck_{name}")
        if value is not None:
            dashed = name.replace("_", "-")
            yield name, FLAGS[f"--{dashed}"].convert(f"--gqacheck-{dashed}", value)
    for name in ("base", "baseline"):
        value = getattr(option, f"gqacheck_{name}")
        if value == "":
            raise UsageError(f"--gqacheck-{name} got an empty path")
        if value is not None:
            path = os.path.join(here, value)
            yield name, path if name == "baseline" or os.path.lexists(path) else value  # auto, org/name
    if option.gqacheck_ppl:
        yield "ppl", tuple(_corpus(text, here) for text in option.gqacheck_ppl)
    yield from ((name, True) for name in _SWITCHES if getattr(option, f"gqacheck_{name}"))


def _corpus(text: str, here: str) -> str:
    """A corpus with its path from ``here``. Raises UsageError for what is none: it may be a test path swallowed."""
    from gqacheck.runtime.corpora.asked import parse_asked, rebased, split_asked, unknown
    from gqacheck.runtime.corpora.hub import is_saved_folder

    if not text:
        raise UsageError("--gqacheck-ppl got an empty corpus")
    parts = split_asked(text, here)
    path = os.path.join(here, parts.target)
    is_folder = os.path.isdir(path) and not is_saved_folder(path)
    if not parts.prefix and ("::" in text or path.endswith(".py") or is_folder):
        raise UsageError(
            f"--gqacheck-ppl took {text[:200]!r} for its corpus, and that is no text; "
            "if it names tests, write --gqacheck-ppl=smoke"
        )
    moved = rebased(text, here)
    asked = parse_asked(moved)
    if asked.source and not asked.is_dataset and not os.path.lexists(os.path.join(here, asked.source)):
        raise unknown(asked)
    return moved
