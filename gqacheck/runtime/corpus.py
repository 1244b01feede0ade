"""Texts to measure perplexity on, as their protocol reads them: built in, well known, of a data set, or a file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gqacheck.errors import ReadError, UsageError
from gqacheck.runtime.corpora.asked import NAMED, SMOKE, Asked, parse_asked, unknown
from gqacheck.runtime.corpora.files import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from gqacheck.runtime.corpora.files import Rows, is_data_file, read_rows, read_text
from gqacheck.runtime.corpora.wikitext import (
    TEST_ROWS,
    TEST_SHA256,
    detokenised,
    pages_of,
    raw_of,
    rows_of,
)
from gqacheck.runtime.protocols import DEFAULT_PROTOCOL, Protocol, parse_protocol
from gqacheck.text import printable

C4_ROWS = 1100
"""Documents of C4's validation file that GPTQ, SparseGPT and Wanda read."""
_PTB_SPLITS = {3370: "validation", 3761: "test", 42068: "train"}
"""Lines of each split of the Penn Treebank as language models use it."""
_SMOKE_SEGMENTS = (("english", "english.txt"), ("chinese", "chinese.txt"), ("code", "code.py.txt"))


@dataclass(frozen=True, slots=True)
class Segment:
    """One text of a corpus, judged by itself: its rows (lines or documents), and what tools put between them.

    originals: the rows as they were where the model reads them changed, to count words and bytes by; () where it reads
    them as they are.
    """

    name: str
    rows: tuple[str, ...]
    joiner: str = ""
    originals: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rows as one text."""
        return self.joiner.join(self.rows)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text under a protocol. name: as it was asked for, without the protocol; fingerprint: SHA-256 of the text.

    note: what a reader of the value should know about the text, in words; "" for nothing. genuine: whether it is the
    part of a known corpus that the protocol's tools read, all of it, so that published values are of this text.
    """

    name: str
    segments: tuple[Segment, ...]
    fingerprint: str
    protocol: Protocol = DEFAULT_PROTOCOL
    note: str = ""
    genuine: bool = False

    @property
    def known(self) -> str:
        """``smoke``, ``wikitext2``, ``ptb`` or ``c4``, from whichever file it came; "" for any other text."""
        name = self.name.partition("=")[0]
        return name if name in (SMOKE, *NAMED) else ""


@dataclass(frozen=True, slots=True)
class _Text:
    """What was found for a name."""

    segments: tuple[Segment, ...]
    note: str = ""
    genuine: bool = False


def load_corpus(asked: str) -> Corpus:
    """The corpus that ``CORPUS[@PROTOCOL]`` names (``gqacheck.runtime.corpora.asked``), as that protocol reads it.

    Raises:
        UsageError: no such corpus, protocol, option or column.
        ReadError: it is not available (the sentence says how to give it), no text, empty or too large.
    """
    wanted = parse_asked(asked)
    protocol = parse_protocol(wanted.protocol) if wanted.protocol else DEFAULT_PROTOCOL
    text = _find(wanted, protocol.kind)
    return Corpus(wanted.name, text.segments, _fingerprint(text.segments), protocol, text.note, text.genuine)


def _find(wanted: Asked, kind: str) -> _Text:
    if wanted.known == SMOKE:
        folder = Path(__file__).resolve().parent.parent / "data" / "smoke"
        parts = tuple(Segment(label, (read_text(str(folder / file)),)) for label, file in _SMOKE_SEGMENTS)
        return _Text(parts, genuine=True)
    if wanted.known == "wikitext2":
        return _wikitext2(wanted, kind)
    if wanted.known == "ptb":
        return _ptb(wanted, kind)
    if wanted.known == "c4":
        return _c4(wanted, kind)
    if wanted.is_dataset:
        return _dataset(wanted)
    return _file(wanted)


def _wikitext2(wanted: Asked, kind: str) -> _Text:
    if wanted.source:
        found, raw = _rows_of_file(wanted)
        rows = rows_of(raw) if raw else found.texts
    else:
        from gqacheck.runtime.corpora.hub import wikitext_rows

        rows = wikitext_rows()
    raw = raw_of(rows)
    genuine = hashlib.sha256(raw.encode("utf-8")).hexdigest() == TEST_SHA256
    note = "" if genuine else f"{len(rows)} lines that are not the {TEST_ROWS} of the wikitext-2 test split"
    if kind == "llama.cpp":
        segment = Segment("wikitext2", (raw,))
    elif kind == "lm-eval":
        pages = pages_of(raw)
        segment = Segment("wikitext2", tuple(map(detokenised, pages)), "", pages)
    else:
        segment = Segment("wikitext2", rows, "\n\n")
    return _Text((segment,), note, genuine)


def _ptb(wanted: Asked, kind: str) -> _Text:
    if not wanted.source:
        raise ReadError(
            "ptb is a data set made by a script, which no longer loads: give its lines as a file, --ppl ptb=FILE "
            "(ptb.valid.txt for llm-pruner, ptb.test.txt for gptq; or .jsonl, .parquet with the column sentence); "
            "its literal <unk> is read as it stands"
        )
    found, raw = _rows_of_file(wanted)
    rows = tuple(line.strip() for line in raw.removesuffix("\n").split("\n")) if raw else found.texts
    split = _PTB_SPLITS.get(len(rows))
    note = f"{split} split" if split else f"{len(rows)} lines, not those of a split of the Penn Treebank"
    read = {"llm-pruner": "validation", "gptq": "test"}.get(kind)
    genuine = split == (read or "validation")
    if split and read and read != split:
        note += f", where the tools of {kind} read the {read} split"
    note += "; the literal <unk> is read as it stands"
    if kind == "llama.cpp" and raw:
        return _Text((Segment("ptb", (raw,)),), note, genuine)
    joiner = {"gptq": " ", "llama.cpp": "\n", "lm-eval": "\n"}.get(kind, "\n\n")
    return _Text((Segment("ptb", rows, joiner),), note, genuine)


def _c4(wanted: Asked, kind: str) -> _Text:
    if not wanted.source:
        raise ReadError(
            "c4 is too large to fetch: give its validation file, --ppl c4=FILE "
            "(en/c4-validation.00000-of-00008.json.gz, or another .jsonl or .parquet with the column text)"
        )
    found, raw = _rows_of_file(wanted, C4_ROWS)
    rows = found.texts
    if raw:
        raise UsageError(
            f"{wanted.source} is plain text, and c4 is documents: give a .jsonl, .json.gz or .parquet file"
        )
    note = f"the first {C4_ROWS} documents of the file"
    if len(rows) < C4_ROWS:
        note = f"{len(rows)} documents, fewer than the {C4_ROWS} that gptq reads"
    return _Text((Segment("c4", rows, "\n" if kind == "llama.cpp" else " "),), note, len(rows) == C4_ROWS)


def _dataset(wanted: Asked) -> _Text:
    from gqacheck.runtime.corpora.hub import dataset_rows

    rows = dataset_rows(wanted.source, dict(wanted.options), limit=wanted.rows)
    return _Text((Segment(os.path.basename(wanted.source.rstrip("/")), rows.texts, "\n\n"),), _how_many(wanted, rows))


def _file(wanted: Asked) -> _Text:
    path = wanted.source
    if not os.path.lexists(path):
        if os.sep in path or "." in path:
            raise ReadError(f"{path}: no such text file")
        raise unknown(wanted)
    rows, raw = _rows_of_file(wanted, wanted.rows)
    name = os.path.basename(path)
    if raw:
        return _Text((Segment(name, (raw,)),))
    return _Text((Segment(name, rows.texts, "\n\n"),), _how_many(wanted, rows))


def _rows_of_file(wanted: Asked, limit: int | None = None) -> tuple[Rows, str]:
    """The rows of a data file or saved folder, and ""; for a file of text no rows, and the text."""
    path, column = wanted.source, wanted.options.get("column", "")
    if os.path.isdir(path):
        from gqacheck.runtime.corpora.hub import dataset_rows, is_saved_folder

        if is_saved_folder(path):
            return dataset_rows(path, dict(wanted.options), limit=limit), ""
    if is_data_file(path):
        return read_rows(path, column, limit), ""
    if wanted.options:
        raise UsageError(f"{path} is plain text, without columns or rows: leave out ?{'&'.join(wanted.options)}")
    if path.lower().endswith(".gz"):
        raise ReadError(f"{path} is compressed text: decompress it first (only .jsonl.gz and .json.gz are read as is)")
    return Rows((), ""), read_text(path)


def _how_many(wanted: Asked, rows: Rows) -> str:
    column = printable(rows.column, 60)
    if wanted.rows:
        return f"the first {len(rows.texts)} rows of column {column}, as asked"
    return f"{len(rows.texts)} rows of column {column}, an empty line between two"


def _fingerprint(segments: tuple[Segment, ...]) -> str:
    return hashlib.sha256("\0".join(segment.text for segment in segments).encode("utf-8")).hexdigest()
