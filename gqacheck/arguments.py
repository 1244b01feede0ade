"""The command line as values: which command, which words, which options. Only words after ``--ppl`` are looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gqacheck.errors import UsageError
from gqacheck.flags import ALIASES, COMMAND_FLAGS, GROUPS, Flag, suggestion
from gqacheck.runtime.corpora.asked import NAMED, SMOKE, split_asked

CHECKPOINT_SUFFIXES = (
    ".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf", ".pkl", ".pickle", ".onnx", ".h5", ".npz", ".tar", ".zip",
    ".index.json",
)  # fmt: skip
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".raw")
_CHECKPOINT_BEGINS = (b"PK\x03\x04", b"GGUF", b"\x89HDF", b"\x93NUMPY", b"version https://git-lfs")
COMMANDS: Mapping[str, tuple[str, str]] = {
    "check": ("CKPT [CKPT ...] [options]", "check files or folders (the word `check` may be left out)"),
    "repair": (
        "CKPT [--base PARENT] -o OUT",
        "a sound copy: heads beside their own KV head, attributes, config",
    ),
    "export": ("CKPT OUT", "a folder of safetensors that plain transformers loads, out of any file, verified"),
    "compare": (
        "A B [...] [--base PARENT]",
        "checkpoints and saved reports side by side: sizes, heads, perplexity, speed",
    ),
    "generate": ("CKPT --prompt TEXT", "writes what the checkpoint says after a prompt, as it says it"),
    "explain": ("CODE", "what a rule checks, why it matters and how to fix it; CODE is GQA104 or q-kv-indivisible"),
    "rules": ("[--format text|json]", "all rules with their severities"),
    "demo": ("[FOLDER]", "writes a tiny parent, a broken and a healthy child, and checks them"),
}
_EXAMPLES = """\
examples
  gqacheck pytorch_model.bin                    reads the headers: milliseconds, nothing is executed
  gqacheck model/ --base parent/                beside its parent: does every head still read its own KV head
  gqacheck pytorch_model.bin --ppl              rebuilds and runs it: perplexity on a small built-in text
  gqacheck model/ --ppl held-out.txt            the same on your own text
  gqacheck a.bin b.bin --output json=out.json   two at once, and a JSON report beside the text
  gqacheck model/ --ppl --require shapes,ppl    a gate: exit 3 if one of these could not be checked

exit codes (with several checkpoints the highest)
  0  nothing at or above --fail-on
  1  findings at or above --fail-on
  2  the command line makes no sense
  3  could not check: unreadable file, missing extra, or something --require names was not checked

Options may also stand in gqacheck.toml, or under [tool.gqacheck] in pyproject.toml, in this folder or one above
it (fail-on = "warning"); the command line wins.
"""
_REPAIR_HELP = """
examples
  gqacheck repair pytorch_model.bin --base parent/ --dry-run     what would be changed
  gqacheck repair pytorch_model.bin --base parent/ -o fixed/     each KV head gets its own query heads back
  gqacheck repair pytorch_model.bin -o fixed/                    stale attributes, counts and config alone

The copy is of the same kind as CKPT and has as many heads in every layer. It is checked, and run beside the parent
with everything else masked, before it gets its name. CKPT is never touched. Exit codes: 0 repaired, or nothing to
mend; 2 usage; 3 cannot be mended, and nothing was written.
"""
_EXPORT_HELP = """
examples
  gqacheck export pytorch_model.bin exported/                    from_pretrained("exported/") loads it
  gqacheck export old.bin out/ --dtype bfloat16 --max-shard-size 2GB
  gqacheck export model/ padded/ --pad                           one size for all layers: no code beside the weights
  gqacheck export model/ out.bin --like llm-pruner               torch.load("out.bin", weights_only=False)["model"]

Nothing of a pickle is executed, and weights are streamed. Where layers differ in size, the folder brings one small
modelling file to read, and loads with trust_remote_code=True; --pad adds zeros instead, and says what they cost.
Before OUT appears it is checked and loaded, and its logits are compared with CKPT's. Exit codes: 0 written; 2 usage;
3 cannot be exported, and nothing was written.
"""
_GENERATE_HELP = """
examples
  gqacheck generate pytorch_model.bin --prompt "The river"            sampled: nucleus 0.95, temperature 1, seed 0
  gqacheck generate model/ --prompt "The river" --greedy --max-new-tokens 40

Standard output is the new text alone, without the prompt; why it ended is said on standard error. No repetition
penalty, and no settings of the checkpoint but its EOS: the text is the model's own. Exit codes: 0 written; 2 usage; 3
cannot be run.
"""
_COMPARE_HELP = """
examples
  gqacheck compare a/ b.bin --base parent/                            sizes, heads, verdicts: nothing is run
  gqacheck compare a/ b.bin --base parent/ --ppl wikitext2@gptq-2048  and perplexity, as a multiple of the parent's
  gqacheck compare a/ b.bin --base parent/ --ppl --generate --speed   everything, side by side
  gqacheck a/ --ppl --format json > a.json; gqacheck compare a.json b.json --format markdown

A and B are checkpoints or files that --format json wrote. Values of another text, protocol or tokenizer stand in rows
of their own; what was not read to the end is marked NOT COMPARABLE. With --base each checkpoint is run beside its
parent, and the parent once more by itself. --speed loads all at once, or, where memory is short, two at a time.
Exit codes: 0 the table was made; 2 usage; 3 something in it could not be read or measured, and it says what. What the
checks found does not count here: gqacheck A B is the gate.
"""
_HELP_BELOW = {"repair": _REPAIR_HELP, "export": _EXPORT_HELP, "generate": _GENERATE_HELP, "compare": _COMPARE_HELP}


@dataclass(frozen=True, slots=True)
class Arguments:
    """One command line, taken apart: ``words`` no option took; ``given`` holds only the options that were said."""

    command: str
    words: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    help: bool = False


def parse(argv: Sequence[str]) -> Arguments:
    """What ``argv`` (without the program's name) asks for. Raises UsageError."""
    command, rest = "check", list(argv)
    if rest and rest[0] in COMMANDS:
        command = rest.pop(0)
    elif rest:
        _refuse_unknown_command(rest[0])
    flags = {flag.name: flag for flag in COMMAND_FLAGS[command]}
    words: list[str] = []
    given: dict[str, Any] = {}
    i = 0
    while i < len(rest):
        word = rest[i]
        i += 1
        name, equals, value = word.partition("=")
        name = ALIASES.get(name, name) if command == "repair" else name
        if word == "--":
            words += rest[i:]
            break
        if word in ("-h", "--help"):
            return Arguments(command, help=True)
        if word == "-" or not word.startswith("-"):
            words.append(word)
            continue
        flag = flags.get(name)
        if flag is None:
            hint = suggestion(name, list(flags), 0.8) or f"; see gqacheck {command} --help"
            raise UsageError(f"there is no option {name[:60]!r}{hint}")
        if not flag.metavar:
            if equals:
                raise UsageError(f"{name} takes no value")
            given[flag.key] = True
            continue
        if not equals:
            if name == "--ppl" and not _is_corpus(rest, i, words, command):
                value = SMOKE
            elif i < len(rest):
                value = rest[i]
                i += 1
            else:
                raise UsageError(f"{name} needs a value: {name} {flag.metavar}")
        _store(given, flag, value)
    return Arguments(command, tuple(words), given)


def _store(given: dict[str, Any], flag: Flag, text: str) -> None:
    if not text:
        raise UsageError(f"{flag.name} needs a value: {flag.name} {flag.metavar}")
    value = flag.convert(flag.name, text)
    if flag.repeat:
        given[flag.key] = (*given.get(flag.key, ()), value)
    elif flag.key in given and given[flag.key] != value:
        raise UsageError(f"{flag.name} was given twice, with different values")
    else:
        given[flag.key] = value


def _refuse_unknown_command(word: str) -> None:
    """A bare lower-case word that is no file was meant as a sub-command."""
    if not (word.isascii() and word.isalpha() and word.islower()) or os.path.lexists(word):
        return
    names = list(COMMANDS)
    hint = suggestion(word, names, 0.75) or f"; the sub-commands are {', '.join(names)}"
    raise UsageError(f"{word[:60]!r} is neither a sub-command nor a file or folder here{hint}")


def _is_corpus(rest: Sequence[str], i: int, before: Sequence[str], command: str = "check") -> bool:
    """Whether the word after ``--ppl`` is its corpus. A checkpoint never is: it would silently not be checked.

    Raises UsageError for a checkpoint after ``--ppl`` when there already is one before it.
    """
    if i >= len(rest) or rest[i].startswith("-"):
        return False
    word = rest[i]
    parts = split_asked(word)
    if parts.prefix or parts.target in (SMOKE, *NAMED) or _is_text_file(parts.target):
        return True
    if not os.path.exists(parts.target) and not parts.target.lower().endswith(CHECKPOINT_SUFFIXES):
        others = before or [later for later in rest[i + 1 :] if not later.startswith("-")]
        if others:
            return True  # no such file: it will be reported as a corpus that is not available
    if before:
        call = "gqacheck" if command == "check" else f"gqacheck {command}"
        raise UsageError(
            f"{word[:200]!r} after --ppl is a checkpoint, not a text; to {command} both, put --ppl last: "
            f"{call} {' '.join(before)} {word[:200]} --ppl"
        )
    return False


def _is_text_file(path: str) -> bool:
    """Whether ``path`` is a file of text or of rows, and not a checkpoint by its name or its first bytes."""
    if path.lower().endswith(CHECKPOINT_SUFFIXES) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream:
            head = stream.read(4096)
    except OSError:
        return False
    if head.startswith((b"PAR1", b"\x1f\x8b")) and path.lower().endswith((".parquet", ".gz")):
        return True
    if _begins_as_checkpoint(head) or _is_report(path, head):
        return False
    if path.lower().endswith(_TEXT_SUFFIXES):
        return True  # in whichever encoding: what is no UTF-8 is refused by its own sentence
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(head) == 4096 and error.start > 4092  # cut inside its last character
    return True


def _begins_as_checkpoint(head: bytes) -> bool:
    """Whether ``head`` is how torch, pickle, safetensors, GGUF, HDF5, NumPy or Git LFS begin a file."""
    is_pickle = head[:1] == b"\x80" and head[1:2] <= b"\x05"  # no text of UTF-8 or Latin-1 begins so
    is_safetensors = head[8:9] == b"{" and head[5:8] == b"\0\0\0"  # the header's length, below a terabyte
    return is_pickle or is_safetensors or head.startswith(_CHECKPOINT_BEGINS)


def _is_report(path: str, head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a report of ours: ``compare`` reads those, and no one as a text."""
    if not head.lstrip().startswith(b"{"):
        return False
    from gqacheck.compare.saved import is_report

    return is_report(path)


def help_text(command: str | None) -> str:
    """The help of one command; of all of them for None."""
    if command is not None and command != "check":
        usage, sentence = COMMANDS[command]
        more = _HELP_BELOW.get(command, "")
        return f"usage: gqacheck {command} {usage}\n\n{sentence}\n\noptions\n{_rows(COMMAND_FLAGS[command])}{more}"
    parts = [
        "usage: gqacheck CKPT [CKPT ...] [options]\n",
        "Is a pruned grouped-query-attention checkpoint sound, and does it really run?\n"
        "CKPT is a file (torch zip or legacy, safetensors), a folder as save_pretrained writes it, or a model in the\n"
        "local Hugging Face cache (org/name). The answer is three claims: shapes, pairing, runtime.\n",
        "commands\n" + "".join(f"  {name:22} {text}\n" for name, (_, text) in COMMANDS.items()),
        *(f"{title}\n{_rows(flags)}" for title, flags in GROUPS),
        "  -h, --help             this text\n  --version              the version\n",
        _EXAMPLES,
    ]
    return "\n".join(parts).replace("\n\n  -h", "\n  -h")


def _rows(flags: Sequence[Flag]) -> str:
    return "".join(f"  {f'{flag.name} {flag.metavar}'.rstrip():22} {flag.help}\n" for flag in flags)
