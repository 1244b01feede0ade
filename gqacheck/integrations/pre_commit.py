"""The pre-commit hook: changed files -> the checkpoints that they belong to -> one check, without torch.

``python -m gqacheck.integrations.pre_commit [options] FILE ...``; options are those of ``gqacheck check``, with their
values behind ``=`` (``--expect-ratio=7:1``), because pre-commit puts the files last.

A commit holds many files that end in ``.bin`` or ``.pt`` and are no causal language model. They are named in a line of
their own and block nothing; a checkpoint that cannot be read does.
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
    from gqacheck.checkpoint import Checkpoint
    from gqacheck.formats.model_files import Listing
    from gqacheck.geometry.facts import Geometry
    from gqacheck.settings import Settings

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
STANDARD = frozenset(("model.safetensors", "pytorch_model.bin", *INDEXES))
"""Names that ``save_pretrained`` gives; beside a config.json of whatever content they are a model's."""
WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
CAUSAL = ("CausalLM", "LMHeadModel")
"""What the names of classes of causal language models hold, remote code's and a pruner's own too."""
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
        named = _named(path, settings)
        reason = "" if named else _no_model(path, {**settings.of(path), **given})
        if reason:
            screen.remark(f"note: {path} was not checked: {reason.removeprefix(f'{printable(path)}: ')}")
        else:
            found.append(named or path)
    found = list(dict.fromkeys(found))
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
    if any(word in name for name in _classes(checkpoint) for word in CAUSAL):
        return ""
    try:
        geometry = measure(checkpoint, family=asked.get("family"), head_dim=asked.get("head_dim"))
    except NotACheckpoint as error:
        return str(error)
    except ReadError:
        return ""
    return "" if asked.get("family") else _no_causal(checkpoint, geometry)


def _classes(checkpoint: Checkpoint) -> list[str]:
    """Names of classes that the checkpoint says it is of: in its config, remote code's too, and of its modules."""
    values = checkpoint.config.values if checkpoint.config is not None else {}
    architectures, remote = values.get("architectures"), values.get("auto_map")
    named = list(architectures) if isinstance(architectures, (list, tuple)) else []
    if not named and isinstance(remote, Mapping):
        named = list(remote)
    return [*map(str, named), *(module.short_class for module in checkpoint.modules.values())]


def _no_causal(checkpoint: Checkpoint, geometry: Geometry) -> str:
    """Why what has layers, and says nowhere that it is a causal language model, is none; "" when it can be one.

    It can be one where the layers are a known family's, or share KV heads as an encoder's do not.
    """
    values = checkpoint.config.values if checkpoint.config is not None else {}
    classes = _classes(checkpoint)
    shown = printable(classes[0] if classes else values.get("model_type") or "", 80)
    if values.get("is_encoder_decoder") is True:
        return f"{shown or 'the model'} is an encoder-decoder, and no causal language model"
    blocks = [layer.attention for layer in geometry.layers]
    shares = any(own.q is not None and own.k is not None and own.q.rows != own.k.rows for own in blocks)
    if shares or not geometry.family.generic or "num_key_value_heads" in geometry.config:
        return ""
    if shown:
        return f"{shown} is no causal language model that is known; name it in checkpoints of the settings if it is one"
    return "its layers are of no known family; name it in checkpoints of the settings if it is a causal language model"


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


def _named(path: str, settings: Settings) -> str:
    """The path by which the settings' ``checkpoints`` name it, or itself where they name a folder that it lies in.

    "" when they do neither. A folder may be named by the only weight file in it, and the other way round.
    """
    from glob import glob

    from gqacheck.baseline import other_name
    from gqacheck.settings import shortest

    patterns = (os.path.join(settings.folder, pattern) for pattern in settings.checkpoints)
    named = {os.path.realpath(one): one for pattern in patterns for one in glob(pattern, recursive=True)}
    real = os.path.realpath(path)
    other = other_name(path) if named and real not in named else ""
    if other and os.path.realpath(other) in named:
        return shortest(named[os.path.realpath(other)].rstrip(os.sep))
    return path if any(real == one or real.startswith(one.rstrip(os.sep) + os.sep) for one in named) else ""


if __name__ == "__main__":
    leave(main())
