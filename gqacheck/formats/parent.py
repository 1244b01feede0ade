"""``--base auto``: the parent that a checkpoint's own config names."""

from __future__ import annotations

import os

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import ReadError
from gqacheck.formats.hub_cache import find_in_cache
from gqacheck.text import printable

AUTO = "auto"
_LONGEST = 1024


def find_parent(checkpoint: Checkpoint) -> tuple[str, str]:
    """The parent's folder or file, and in words where its name stood (``named in config.json, ...``).

    A ``_name_or_path`` that exists here is taken as it is, any other is looked up in the local Hugging Face cache.

    Raises:
        ReadError: the config names no parent, or it is not on this machine.
    """
    config = checkpoint.config
    named = config.values.get("_name_or_path") if config is not None else None
    if config is None or not isinstance(named, str) or not named.strip() or len(named) > _LONGEST:
        where = config.source if config is not None else "the checkpoint (it has no config)"
        raise ReadError(f"--base auto: {where} has no _name_or_path that names the parent; give --base PARENT")
    if os.path.exists(named):
        return named, f"named in {config.source}"
    try:
        return find_in_cache(named), f"{printable(named)}, named in {config.source}, found in the Hugging Face cache"
    except ReadError as error:
        raise ReadError(f"--base auto: {config.source} names the parent: {error}") from error
