"""Numbers, layers, codes and formats in the words that people read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gqacheck.result import ClaimState, Verdict
from gqacheck.rules.rule import Severity, Skipped

SEVERITY_LETTERS = {Severity.ERROR: "E", Severity.WARNING: "W", Severity.NOTE: "I"}
STATE_WORDS = {
    ClaimState.PASS: "ok",
    ClaimState.FAIL: "FAIL",
    ClaimState.NOT_CHECKED: "NOT CHECKED",
    ClaimState.NOT_APPLICABLE: "n/a",
}
VERDICT_WORDS = {Verdict.PASS: "PASS", Verdict.FAIL: "FAIL", Verdict.ERROR: "COULD NOT CHECK"}


def layer_ranges(layers: Iterable[int]) -> str:
    """``4-11, 13`` for (4, 5, …, 11, 13); "" for none."""
    runs: list[list[int]] = []
    for index in sorted(set(layers)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def layers_words(layers: Sequence[int]) -> str:
    """``layer 4`` or ``layers 4-11, 13``; "" for none."""
    if not layers:
        return ""
    return ("layer " if len(set(layers)) == 1 else "layers ") + layer_ranges(layers)


def plural(n: int, noun: str) -> str:
    """``1 error``, ``2 errors``, ``no errors``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s" if n else f"no {noun}s"


def scaled(n: int) -> str:
    """``6.63 B``, ``2.9 M``, ``4,321``."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if n >= size:
            return f"{_three_digits(n / size)} {letter}"
    return f"{n:,}"


def bytes_words(n: int) -> str:
    """``152 KB``, ``16.06 GB``: decimal units."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if n >= size:
            value = n / size
            return f"{value:.2f} {unit}" if size >= 10**9 else f"{_three_digits(value)} {unit}"
    return f"{n} B"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def seconds_words(seconds: float) -> str:
    """``0.09 s``, ``3.4 s``, ``2 min 5 s``."""
    if seconds >= 99.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def format_words(name: str) -> str:
    """``torch zip, whole module`` for ``torch-zip-module``."""
    words = {
        "torch-zip-module": "torch zip, whole module",
        "torch-zip-state-dict": "torch zip, state dict",
        "torch-legacy-module": "torch legacy file, whole module",
        "torch-legacy-state-dict": "torch legacy file, state dict",
        "safetensors": "safetensors",
        "folder-safetensors": "folder, safetensors",
        "folder-safetensors-sharded": "folder, sharded safetensors",
        "folder-torch": "folder, torch file",
        "folder-torch-sharded": "folder, sharded torch files",
        "live-module": "live module",
    }
    return words.get(name, name.replace("-", " "))


def code_ranges(codes: Iterable[str]) -> str:
    """``GQA201-GQA207, GQA411`` for codes that follow each other in number."""
    runs: list[list[str]] = []
    for code in dict.fromkeys(codes):
        if runs and code[3:].isdigit() and runs[-1][1][3:].isdigit() and int(code[3:]) == int(runs[-1][1][3:]) + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return ", ".join(first if first == last else f"{first}-{last}" for first, last in runs)


def skipped_words(skipped: Iterable[Skipped]) -> list[str]:
    """``GQA201-GQA207: the file holds no modules``, one entry per reason, in order of first code."""
    by_reason: dict[str, list[str]] = {}
    for skip in skipped:
        by_reason.setdefault(skip.reason, []).append(skip.code)
    return [f"{code_ranges(codes)}: {reason}" for reason, codes in by_reason.items()]
