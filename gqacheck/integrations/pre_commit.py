"""The pre-commit hook: changed files -> the checkpoints that they belong to -> one check, without torch.

``python -m gqacheck.integrations.pre_commit [options] FILE ...``; options are those of ``gqacheck check``, with their
values behind ``=`` (``--expect-ratio=7:1``), because pre-commit puts the files last.

A commit holds many files that end in ``.bin`` or ``.pt`` and are no language model. They are named in a line of their
own and block nothing; a checkpoint that cannot be read does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gqacheck.errors import NotACheckpoint, ReadError, UsageError
from gqacheck.screen import Screen, guarded, leave
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.formats.model_files import Listing
    from gqacheck.settings import Settings

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
STANDARD = frozenset(("model.safetensors", "pytorch_model.bin", *INDEXES))
"""Names that ``save_pretrained`` gives; beside a config.json of whatever content they are a model's."""
WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
CAUSAL = ("ForCausalLM", "LMHeadModel")
_LFS = b"version https://git-lfs.github.com/spec/"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of ``gqacheck`` on the checkpoints to which the named files belong; 0 when there are none."""
    words = list(sys.argv[1:] if argv is None else argv)
    screen = Screen(sys.stdout, sys.stderr)
    return guarded(screen, lambda: _run(words, screen))


def _run(words: Sequence[str], screen: Screen) -> int:
    from gqacheck.arguments import parse
    from gqacheck.cli import main as check
    from gqacheck.settings import find_settings

    options, files = _apart(words)
    given = parse(["check", *options]).given
    settings = find_settings(os.getcwd())
    found = []
    for path in checkpoints_of(files):
        reason = _no_model(path, {**settings.of(path), **given})
        if reason and not _named(path, settings):
            screen.remark(f"note: {path} was not checked: {reason.removeprefix(f'{printable(path)}: ')}")
        else:
            found.append(path)
    return check(["check", *options, "--", *found]) if found else 0


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options and files. A name that begins with a dash is a file where there is one, unless it is an option's.

    Raises UsageError for an option whose value is a word of its own, which could as well be a file.
    """
    from gqacheck.flags import FLAGS

    options: list[str] = []
    files: list[str] = []
    for n, word in enumerate(words):
        name, equals, _ = word.partition("=")
        flag = FLAGS.get(name)
        if not word.startswith("-") or (flag is None and os.path.lexists(word)):
            files.append(word)
            continue
        options.append(word)
        after = next(iter(words[n + 1 :]), "")
        apart = after and not after.startswith("-") and not _is_looked_at(os.path.basename(after))
        if flag is not None and flag.metavar and not equals and (apart or name != "--ppl"):
            value = after if apart else flag.metavar
            raise UsageError(
                f"{name}: pre-commit puts the files last, so the value goes behind =; write {name}={value}"
            )
    return options, files


def checkpoints_of(files: Sequence[str]) -> list[str]:
    """Folders and files to check, sorted: a shard, a config or an index stands for its folder.

    So does what lies in or below a model folder and is left alone there (``optimizer.pt``, ``original/``).
    """
    return sorted({path for file in files if os.path.lexists(file) for path in _belongs_to(file)})


def _is_looked_at(name: str) -> bool:
    return name in STANDARD or name == "config.json" or name.lower().endswith(WEIGHTS)


def _belongs_to(file: str) -> Iterator[str]:
    """The checkpoints of which ``file`` is a part: one, none, or each of those beside a config.json."""
    from gqacheck.formats.model_files import reason_left_alone
    from gqacheck.formats.weight_sets import find_loose, find_weight_sets

    folder, name = os.path.split(file)
    if not _is_looked_at(name):
        return
    listing = _model_folder(folder)
    if listing is None:
        yield from _above(file) if name != "config.json" else ()
        return
    sets = find_weight_sets(listing)
    parts = {name for one in sets for name in one.files(listing)}
    if sets and (name in parts or name == "config.json" or name in INDEXES or reason_left_alone(name)):
        yield folder or "."
    elif name == "config.json":
        yield from (os.path.join(folder, loose) for loose in find_loose(listing))
    else:
        yield file


def _above(file: str) -> Iterator[str]:
    """The nearest model folder above, where it leaves such files alone; else the file itself."""
    from gqacheck.formats.model_files import reason_left_alone
    from gqacheck.formats.weight_sets import find_weight_sets

    folder, name = os.path.split(file)
    below = [name]
    while folder not in ("", os.sep):
        folder, part = os.path.split(folder)
        below.append(part)
        listing = _model_folder(folder)
        if listing is not None:
            if find_weight_sets(listing) and any(map(reason_left_alone, below)):
                yield folder or "."
                return
            break
    yield file


def _model_folder(folder: str) -> Listing | None:
    """What lies in a folder whose config.json names a model, or lies beside weights with the standard names."""
    from gqacheck.formats.model_files import list_folder, read_json

    try:
        listing = list_folder(folder or ".")
    except ReadError:
        return None
    if "config.json" not in (*listing.files, *listing.broken):
        return None
    if not STANDARD.isdisjoint((*listing.files, *listing.broken)):
        return listing
    try:
        values, _, _ = read_json(os.path.join(listing.folder, "config.json"))
    except ReadError:
        return None
    return listing if values.get("model_type") or values.get("architectures") else None


def _no_model(path: str, asked: Mapping[str, Any]) -> str:
    """Why ``path`` is no causal language model; "" when it is one, or could be one that is broken."""
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure

    folder = os.path.isdir(path)
    try:
        reason = "" if folder else _no_container(path)
    except ReadError:
        return ""
    if reason:
        return reason
    try:
        checkpoint = open_checkpoint(path, config=asked.get("config"))
    except NotACheckpoint as error:
        return "" if folder or _is_part(path) else str(error)
    except (ReadError, OSError):
        return ""
    names = checkpoint.config.values.get("architectures") if checkpoint.config is not None else None
    try:
        measure(checkpoint, family=asked.get("family"), head_dim=asked.get("head_dim"))
    except NotACheckpoint as error:
        causal = isinstance(names, (list, tuple)) and any(str(name).endswith(CAUSAL) for name in names)
        return "" if causal else str(error)
    except ReadError:
        return ""
    return ""


def _no_container(path: str) -> str:
    """What a file is that is neither torch's nor safetensors, "" for one that is.

    Raises ReadError where its name or content says that it should be one, and for what cannot be opened.
    """
    from gqacheck.formats.identify import identify
    from gqacheck.formats.source import Source

    name = os.path.basename(path)
    if name.endswith(".json"):
        return ""
    with Source.open(path) as source:
        try:
            identify(source)
        except ReadError as error:
            pointer = source.read(0, min(len(_LFS), source.size)) == _LFS
            if pointer or not source.size or name.endswith(".safetensors") or name.startswith("pytorch_model"):
                raise
            return str(error)
    return ""


def _is_part(path: str) -> bool:
    """Whether the name is an index's or a shard's: what it belongs to is a model, and something is missing."""
    from gqacheck.formats.shards import parse_shard_name

    shard = parse_shard_name(os.path.basename(path))
    return path.endswith(".json") or (shard is not None and int(shard.total) > 1)


def _named(path: str, settings: Settings) -> bool:
    """Whether the settings' ``checkpoints`` name the path, or a folder that it lies in."""
    from glob import glob

    real = os.path.realpath(path)
    patterns = (os.path.join(settings.folder, pattern) for pattern in settings.checkpoints)
    named = {os.path.realpath(one) for pattern in patterns for one in glob(pattern, recursive=True)}
    return any(real == one or real.startswith(one.rstrip(os.sep) + os.sep) for one in named)


if __name__ == "__main__":
    leave(main())
