"""The comparison from end to end: saved reports are read, checkpoints are checked, and all become columns.

The base is a column of its own, checked by itself so that its perplexity is that of the whole text; each child runs it
once more beside itself, on the same windows. N checkpoints therefore cost 2 N + 1 runs with a base, N without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gqacheck.compare.column import column_of, not_run
from gqacheck.compare.facts import Column, Table
from gqacheck.compare.group import base_of_all, group_readings, group_texts, same_place, with_names
from gqacheck.compare.saved import MOST_CHECKPOINTS, is_report, read_report
from gqacheck.errors import UsageError
from gqacheck.options import Options, from_python, make_options
from gqacheck.pipeline import check_path
from gqacheck.result import CheckpointReport, Report
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.runtime.running import Progress

Checker = Callable[[str, Options], CheckpointReport]


@dataclass(frozen=True, slots=True)
class _Made:
    """A column, and the check that it came from when it was made here."""

    column: Column
    report: CheckpointReport | None = None


def compare(
    paths: Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | None = None,
    ppl: Sequence[str] | str | bool = (),
    generate: bool = False,
    speed: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    no_early_stop: bool = False,
    progress: Progress | None = None,
    checker: Checker = check_path,
) -> Table:
    """Checkpoints and saved JSON reports side by side; what could not be read or measured says so in its column.

    base: the checkpoint before pruning (or its saved report), the first column; ``auto`` is the parent that the first
    checkpoint names. ppl, generate, speed: what is measured; of a saved report only what already stands in it is shown.
    The other options are those of the check.

        >>> from gqacheck.compare import compare
        >>> table = compare(["a.bin", "b.json"], base="parent/", ppl=["wikitext2@gptq-2048"])  # doctest: +SKIP

    Raises:
        UsageError: fewer than two columns, or options that make no sense.
        ReadError: a file that looks like a saved report cannot be read as one; --base auto finds no parent.
    """
    given = from_python(
        ppl=ppl,
        generate=generate,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        no_early_stop=no_early_stop,
    )
    options = make_options(given, progress=progress)
    words = list(dict.fromkeys(os.fspath(path) for path in paths))
    saved = {word: _columns_of(word) for word in words if is_report(word)}
    base_word, notes = _base_word(None if base is None else os.fspath(base), words, saved)
    words = [word for word in words if base_word is None or not same_place(word, base_word)]
    base_saved = _one_base(base_word) if base_word is not None and is_report(base_word) else None
    _refuse(words, saved, base_word, base_saved, options, speed)

    beside = replace(options, base=base_word if base_saved is None else None)
    made: list[_Made] = []
    if base_saved is not None:
        made.append(_Made(base_saved))
    elif base_word is not None:
        found = _check(checker, base_word, replace(options, progress=_said(progress, "base")), options)
        made.append(replace(found, column=replace(found.column, is_base=True)))
    for word in words:
        if word in saved:
            made += [_Made(column) for column in saved[word]]
        else:
            made.append(_check(checker, word, replace(beside, progress=_said(progress, word)), options))
    return _table(made, base_word is not None, notes, options, speed)


def _columns_of(path: str) -> tuple[Column, ...]:
    return tuple(column_of(entry, "report", path) for entry in read_report(path))


def _base_word(base: str | None, words: Sequence[str], saved: Any) -> tuple[str | None, tuple[str, ...]]:
    """The base's path, ``auto`` resolved by the first checkpoint; and the note on where it was named."""
    from gqacheck.formats.parent import AUTO, find_parent

    if base != AUTO or os.path.exists(AUTO):
        return base, ()
    from gqacheck.formats import open_checkpoint

    first = next((word for word in words if word not in saved), None)
    if first is None:
        raise UsageError("--base auto asks a checkpoint for its parent, and only saved reports were given")
    path, where = find_parent(open_checkpoint(first))
    return path, (f"base: {where}, the parent of {printable(first)}",)


def _one_base(path: str) -> Column:
    columns = _columns_of(path)
    if len(columns) != 1:
        raise UsageError(f"--base: the report {printable(path)} holds {len(columns)} checkpoints; a base is one")
    return replace(columns[0], is_base=True)


def _refuse(
    words: Sequence[str], saved: Any, base_word: str | None, base_saved: Column | None, options: Options, speed: bool
) -> None:
    """Raises UsageError for a comparison that makes no sense, before anything is run."""
    n = sum(len(saved[word]) if word in saved else 1 for word in words)
    if n + (base_word is not None) < 2:
        raise UsageError(f"compare takes two checkpoints or reports, or one and --base, and was given {n} to compare")
    if n > MOST_CHECKPOINTS:
        raise UsageError(f"compare was given {n} checkpoints; a table has {MOST_CHECKPOINTS} columns at most")
    asked = "--ppl" if options.ppl else "--generate" if options.generate else "--speed" if speed else ""
    if asked and all(word in saved for word in words) and (base_word is None or base_saved is not None):
        raise UsageError(f"{asked} runs checkpoints, and only saved reports were given: they show what stands in them")


def _said(progress: Progress | None, name: str) -> Progress | None:
    from gqacheck.runtime.running import labelled

    return labelled(progress, f"{printable(os.path.basename(os.path.normpath(name)), 16)}: ")


def _check(checker: Checker, path: str, options: Options, asked: Options) -> _Made:
    """The check of one checkpoint as a column; what was asked for and not measured is its problem."""
    from gqacheck import __version__
    from gqacheck.report.json import as_data

    report = checker(path, options)
    entry = as_data(Report((report,), report.exit_code, __version__))["checkpoints"][0]
    column = column_of(entry | {"version": __version__}, "checkpoint")
    missing = []
    if asked.ppl and len(column.readings) < len(asked.ppl):
        missing.append("perplexity")
    if asked.generate and column.texts is None:
        missing.append("generation")
    if missing:
        column = replace(column, missing=tuple(missing), problem=column.problem or not_run(entry))
    return _Made(column, report)


def _table(made: Sequence[_Made], has_base: bool, notes: tuple[str, ...], options: Options, speed: bool) -> Table:
    from gqacheck import __version__

    columns = with_names([each.column for each in made])
    base = 0 if has_base else None
    base_path, disagreement = base_of_all(columns, base)
    row = None
    if speed:
        from gqacheck.compare.speed import run_speed

        row, columns = run_speed(columns, [each.report for each in made], options)
    return Table(
        columns=columns,
        base=base,
        base_path=base_path,
        readings=group_readings(columns, base, base_path),
        texts=group_texts(columns),
        speed=row,
        notes=(*notes, *((disagreement,) if disagreement else ())),
        version=__version__,
    )
