"""Texts to measure perplexity on: the built-in smoke corpus, and any UTF-8 file."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from gqacheck.errors import ReadError, UsageError

SMOKE = "smoke"
DEFAULT_WINDOW = 512
MAX_TEXT_BYTES = 64 << 20
_SMOKE_SEGMENTS = (("english", "english.txt"), ("chinese", "chinese.txt"), ("code", "code.py.txt"))
_KNOWN_ELSEWHERE = frozenset(
    (
        "wikitext", "wikitext2", "wikitext-2", "wikitext103", "ptb", "c4", "pile", "alpaca",
    )
)  # fmt: skip
_PROTOCOL = re.compile(r"windows-(\d{1,6})")
_LOOKS_LIKE_PROTOCOL = re.compile(r"[a-z][a-z.-]*-?\d*")


@dataclass(frozen=True, slots=True)
class Segment:
    """One text of a corpus, judged by itself."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named text with the SHA-256 of its content, and the window length (positions) that was asked for."""

    name: str
    segments: tuple[Segment, ...]
    fingerprint: str
    window: int = DEFAULT_WINDOW


def load_corpus(asked: str) -> Corpus:
    """The corpus that ``CORPUS[@PROTOCOL]`` names: ``smoke`` or the path of a text file; protocol ``windows-N``.

    Raises:
        UsageError: no such corpus or protocol.
        ReadError: the file is missing, no text, empty or too large.
    """
    name, window = _split_protocol(asked)
    if name == SMOKE:
        folder = Path(__file__).resolve().parent.parent / "data" / "smoke"
        segments = tuple(Segment(label, _read_text(str(folder / file))) for label, file in _SMOKE_SEGMENTS)
        return Corpus(SMOKE, segments, _fingerprint(segments), window)
    if not os.path.lexists(name):
        if name.lower() in _KNOWN_ELSEWHERE:
            raise ReadError(
                f"corpus {name} is not built in yet: save its text to a file and give that (--ppl {name}.txt)"[:200]
            )
        if os.sep in name or "." in name:
            raise ReadError(f"{name}: no such text file")
        raise UsageError(f"unknown corpus {name!r}: use smoke (built in), or the path of a UTF-8 text file")
    segments = (Segment(os.path.basename(name), _read_text(name)),)
    return Corpus(name, segments, _fingerprint(segments), window)


def _split_protocol(asked: str) -> tuple[str, int]:
    name, at, protocol = asked.rpartition("@")
    if not at or os.path.lexists(asked):
        return asked, DEFAULT_WINDOW
    match = _PROTOCOL.fullmatch(protocol)
    if match and 16 <= int(match[1]) <= 131072:
        return name, int(match[1])
    if not _LOOKS_LIKE_PROTOCOL.fullmatch(protocol):
        return asked, DEFAULT_WINDOW
    raise UsageError(f"unknown protocol {protocol!r}: use windows-N with N from 16 to 131072, such as windows-512")


def _read_text(path: str) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ReadError(f"{path} is not a regular file; give a UTF-8 text file")
            if status.st_size > MAX_TEXT_BYTES:
                raise ReadError(
                    f"{path} has {status.st_size} bytes, more than {MAX_TEXT_BYTES}; give a part of it, or use --limit "
                    "on a smaller file"
                )
            data = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ReadError(f"cannot read the text file {path}: {error.strerror or error}") from error
    if b"\0" in data:
        raise ReadError(f"{path} is binary, not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    if not text.strip():
        raise ReadError(f"{path} is empty: there is nothing to measure perplexity on")
    return text


def _fingerprint(segments: tuple[Segment, ...]) -> str:
    return hashlib.sha256("\0".join(segment.text for segment in segments).encode("utf-8")).hexdigest()
