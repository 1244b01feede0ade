"""The options of ``gqacheck check`` as data: their names, what each takes, and the sentence of the help.

``gqacheck.arguments`` reads them from a command line, ``gqacheck.settings`` from a TOML file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gqacheck.errors import UsageError

FORMATS = ("text", "json", "junit", "markdown", "github", "html")
OUTPUT_FORMATS = (*FORMATS, "svg")
"""What --output writes into files: the reports, and the head map as a picture."""
COLOURS = ("auto", "always", "never")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. ``convert`` takes (its name, the text) and raises UsageError; ``metavar`` "" means it takes nothing.

    repeat: may be given several times. path: its value names a file, relative to where it was written down.
    setting: may stand in a settings file.
    """

    name: str
    metavar: str
    help: str
    convert: Callable[[str, str], Any] = lambda name, text: text
    repeat: bool = False
    path: bool = False
    setting: bool = True

    @property
    def key(self) -> str:
        """The name as a Python identifier."""
        return self.name[2:].replace("-", "_")


def whole_number(least: int) -> Callable[[str, str], int]:
    """A converter to an int that is not below ``least``."""

    def convert(name: str, text: str) -> int:
        digits = text[1:] if text.startswith("-") else text
        if digits.isascii() and digits.isdigit() and len(digits) < 19 and int(text) >= least:
            return int(text)
        raise UsageError(f"{name} takes a whole number from {least} up, not {text[:60]!r}")

    return convert


def number(least: float, most: float = math.inf) -> Callable[[str, str], float]:
    """A converter to a float from ``least`` to ``most``."""

    def convert(name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and least <= value <= most:
            return value
        limits = f"from {least:g} up" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise UsageError(f"{name} takes a number {limits}, not {text[:60]!r}")

    return convert


def one_of(*allowed: str) -> Callable[[str, str], str]:
    """A converter that lets only these words through."""

    def convert(name: str, text: str) -> str:
        if text in allowed:
            return text
        raise UsageError(f"{name} takes {', '.join(allowed)}, not {text[:60]!r}{suggestion(text, allowed)}")

    return convert


def suggestion(text: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """``; did you mean X?`` for the known word that is close to ``text``, else ""."""
    from difflib import get_close_matches

    close = get_close_matches(text, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def _ratio(name: str, text: str) -> tuple[int, int]:
    q, _, kv = text.partition(":")
    if all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) for part in (q, kv)):
        return int(q), int(kv)
    raise UsageError(f"{name} takes query heads:KV heads such as 7:1, not {text[:60]!r}")


def _ratio_above_one(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 < value < 1e6:
        raise UsageError(f"{name} takes a number above 1, such as 1.2, not {text[:60]!r}")
    return value


def _commas(name: str, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UsageError(f"{name} takes names with commas between them, not {text[:60]!r}")
    return names


def _claims(name: str, text: str) -> tuple[str, ...]:
    """Names that ``--require`` knows."""
    from gqacheck.claims import REQUIRABLE

    return tuple(one_of(*REQUIRABLE)(name, part) for part in _commas(name, text))


def _rules(name: str, text: str) -> tuple[str, ...]:
    """Names that mean at least one rule each."""
    from gqacheck.rules import RULES
    from gqacheck.rules.run import find_rules

    names = _commas(name, text)
    for part in names:
        try:
            find_rules(RULES, part)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
    return names


def _output(name: str, text: str) -> tuple[str, str]:
    form, equals, path = text.partition("=")
    if equals and path and form in OUTPUT_FORMATS:
        return form, path
    raise UsageError(f"{name} takes FORMAT=FILE, where FORMAT is {', '.join(OUTPUT_FORMATS)}, not {text[:60]!r}")


GROUPS: tuple[tuple[str, tuple[Flag, ...]], ...] = (
    (
        "what the checkpoint does not say",
        (
            Flag("--base", "PARENT", "the checkpoint before pruning; auto = the one that the config names", path=True),
            Flag("--config", "FILE", "a config.json for a checkpoint that carries none", path=True),
            Flag("--family", "NAME", "the model family (llama, qwen2, ...) when it is not recognised"),
            Flag("--head-dim", "N", "rows of one head", whole_number(1)),
            Flag("--expect-layers", "N", "layers that must be there", whole_number(0)),
            Flag("--expect-ratio", "Q:KV", "query heads to KV heads in every layer, e.g. 7:1", _ratio),
        ),
    ),
    (
        "reading the weights (needs gqacheck[lineage])",
        (Flag("--values", "", "without --base: look for signs that query heads read KV heads that are not theirs"),),
    ),
    (
        "running it (needs gqacheck[run])",
        (
            Flag("--ppl", "[CORPUS[@PROTOCOL]]", "perplexity on smoke (built in), wikitext2, a file, ...; repeatable",
                 repeat=True),
            Flag("--generate", "", "let it write 16 texts: does it loop, break characters, write word salad"),
            Flag("--consistency", "", "eager = sdpa, cached = full, padded = alone; copies of random tokens"),
            Flag("--all-runtime", "", "--ppl, --generate and --consistency"),
            Flag("--tokenizer", "PATH", "a tokenizer folder or file, for a checkpoint that has none", path=True),
            Flag("--device", "DEVICE", "cpu (default), cuda, cuda:1, mps"),
            Flag("--dtype", "DTYPE", "float32, bfloat16, float16, or auto (as stored)"),
            Flag("--device-map", "MAP", "spread over devices as accelerate does: auto, balanced, sequential"),
            Flag("--batch-size", "N", "windows at once", whole_number(1)),
            Flag("--limit", "N", "windows per corpus; fewer than all are not comparable", whole_number(1)),
            Flag("--no-early-stop", "", "read to the end even what is broken for certain after a few windows"),
            Flag("--seed", "N", "for what is random; default 0", whole_number(0)),
        ),
    ),
    (
        "what counts",
        (
            Flag("--require", "NAMES", "exit 3 unless checked: shapes, pairing, runtime, ppl, generation, consistency",
                 _claims),
            Flag("--max-ppl-ratio", "X", "times the base's perplexity that is an error; default 5", _ratio_above_one),
            Flag("--select", "CODES", "only these rules: codes, slugs or prefixes (GQA1,norm-width)", _rules),
            Flag("--ignore", "CODES", "without these rules", _rules),
            Flag("--baseline", "FILE", "known findings, which pass; new ones fail, stale entries are told", path=True),
            Flag("--update-baseline", "", "write this run's errors and warnings to --baseline as the known ones",
                 setting=False),
            Flag("--fail-on", "LEVEL", "error (default) or warning", one_of("error", "warning")),
        ),
    ),
    (
        "the report",
        (
            Flag("--format", "FORMAT", "on standard output: text (default), json, junit, markdown, github, html",
                 one_of(*FORMATS)),
            Flag("--output", "FORMAT=FILE", "also into a file: any of these, or svg, the map of heads; repeatable",
                 _output, repeat=True, setting=False),
            Flag("--quiet", "", "one line per checkpoint, no progress bar"),
            Flag("--verbose", "", "also what was measured layer by layer, in the text report"),
            Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
        ),
    ),
)  # fmt: skip
FLAGS = {flag.name: flag for _, flags in GROUPS for flag in flags}
_SHORT = (
    Flag("--format", "text|json", "default text", one_of("text", "json")),
    Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
)
REPAIR = (
    Flag("--base", "PARENT", "the checkpoint before pruning; without it only what needs no parent is mended"),
    Flag("--out", "OUT", "the folder (or .bin, .safetensors file) to write; also -o; must not exist"),
    Flag("--dry-run", "", "say what would be changed, and write nothing"),
    Flag("--from-base", "", "take every weight of a repaired layer from the parent, fine-tuned ones too"),
    *(FLAGS[name] for name in ("--config", "--family", "--head-dim")),
    Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
)
EXPORT = (
    Flag("--dtype", "DTYPE", "float32, bfloat16, float16 for all weights; default: as each is stored"),
    Flag("--max-shard-size", "SIZE", "bytes of one file at most: 5GB (default), 200MB"),
    Flag("--pad", "", "zeros where layers are smaller than others, so that a class of transformers holds them all"),
    Flag("--like", "llm-pruner", "OUT is a pickle of the live model and its tokenizer, for tools that insist on one"),
    Flag("--tokenizer", "PATH", "a tokenizer folder or file, for a checkpoint that has none"),
    Flag("--force", "", "in spite of errors that are not about the tensors; nothing is ever made up"),
    *(FLAGS[name] for name in ("--config", "--family", "--head-dim")),
    Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
)
GENERATE = (
    Flag("--prompt", "TEXT", "what the text begins with"),
    Flag("--max-new-tokens", "N", "tokens at most; default 128", whole_number(1)),
    Flag("--temperature", "T", "default 1; below 1 is surer of itself, 0 is --greedy", number(0)),
    Flag("--top-p", "P", "choose among the likeliest tokens that have P together; default 0.95", number(0.001, 1)),
    Flag("--greedy", "", "always the likeliest token"),
    *(FLAGS[name] for name in ("--seed", "--device", "--dtype", "--tokenizer", "--config", "--family", "--head-dim")),
    Flag("--color", "WHEN", "taken as everywhere; nothing here is coloured", one_of(*COLOURS)),
)
TABLE_FORMATS = ("text", "markdown", "json")
COMPARE = (
    Flag("--base", "PARENT", "the checkpoint before pruning, or its report: the first column; auto = as in check"),
    FLAGS["--ppl"],
    Flag("--generate", "", "let each write 16 texts: how many are flagged, and how much repeats (mean rep-4)"),
    Flag("--speed", "", "tokens per second, prefill and decode, in turns with the base (or the first)"),
    *(
        FLAGS[name]
        for name in ("--tokenizer", "--device", "--dtype", "--batch-size", "--limit", "--no-early-stop", "--seed")
    ),
    Flag("--format", "FORMAT", "text (default), markdown or json", one_of(*TABLE_FORMATS)),
    Flag("--color", "WHEN", "auto, always or never", one_of(*COLOURS)),
)
COMMAND_FLAGS: dict[str, tuple[Flag, ...]] = {
    "check": tuple(FLAGS.values()),
    "explain": _SHORT[1:],
    "rules": _SHORT,
    "demo": _SHORT[1:],
    "repair": REPAIR,
    "export": EXPORT,
    "generate": GENERATE,
    "compare": COMPARE,
}
"""The options of every sub-command."""
ALIASES = {"-o": "--out"}
