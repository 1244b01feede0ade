"""The local Hugging Face cache: ``org/name`` to the folder of its snapshot. Nothing is ever fetched."""

from __future__ import annotations

import os
import re

from gqacheck.errors import ReadError
from gqacheck.text import printable, printable_list

_REPO = r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?(?:@[\w./-]{1,100})?"
_MAX_REF_BYTES = 200


def cache_folder() -> str:
    """The cache that huggingface_hub would use: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, else the default."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return _expand(os.environ[variable])
    if os.environ.get("HF_HOME"):
        return os.path.join(_expand(os.environ["HF_HOME"]), "hub")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(_expand(base), "huggingface", "hub")


def find_in_cache(name: str) -> str:
    """The snapshot folder of ``name`` (``org/name``, ``name`` or ``org/name@revision``) in the local cache.

    Raises ``ReadError`` when ``name`` is neither on disk nor in the cache, saying what to do.
    """
    shown = printable(name)
    if "://" in name:
        raise ReadError(f"{shown}: URLs are not read; download it first and give the local path")
    if not re.fullmatch(_REPO, name):
        raise ReadError(f"{shown}: no such file or folder")
    repo, _, revision = name.partition("@")
    cache = cache_folder()
    folder = os.path.join(cache, "models--" + repo.replace("/", "--"))
    if os.path.isdir(folder):
        return find_snapshot(folder, revision or "main")
    if "/" in repo and not _has_suffix(repo):
        raise ReadError(
            f"{shown}: no such file or folder, and no model of that name in the Hugging Face cache "
            f"({printable(cache)}); fetch it first: hf download {shown}"
        )
    raise ReadError(f"{shown}: no such file or folder")


def is_cache_entry(folder: str) -> bool:
    """Whether ``folder`` is a ``models--org--name`` folder of the cache."""
    name = os.path.basename(os.path.normpath(folder))
    return name.startswith("models--") and os.path.isdir(os.path.join(folder, "snapshots"))


def find_snapshot(folder: str, revision: str = "main") -> str:
    """The snapshot of the cache entry ``folder`` that ``refs/<revision>`` names, or that has this commit.

    Without such a ref a single snapshot is taken. Raises ``ReadError`` when there is none, or no way to choose.
    """
    snapshots = os.path.join(folder, "snapshots")
    shown = printable(folder)
    commit = _read_ref(os.path.join(folder, "refs", *revision.split("/"))) if ".." not in revision else None
    for candidate in (commit, revision):
        if candidate and "/" not in candidate and ".." not in candidate:
            path = os.path.join(snapshots, candidate)
            if os.path.isdir(path):
                return path
    try:
        found = sorted(entry.name for entry in os.scandir(snapshots) if entry.is_dir())
    except OSError:
        found = []
    if len(found) == 1 and revision == "main":
        return os.path.join(snapshots, found[0])
    if not found:
        raise ReadError(f"{shown}: is an entry of the Hugging Face cache without a snapshot; download the model again")
    raise ReadError(
        f"{shown}: has no snapshot for {printable(revision, 60)}; give one of its snapshots: "
        f"{printable_list(found, limit=60)}"
    )


def _has_suffix(repo: str) -> bool:
    return repo.lower().endswith((".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".json", ".gguf"))


def _read_ref(path: str) -> str | None:
    try:
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            text = file.read(_MAX_REF_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None
    return text if re.fullmatch(r"[\w.-]+", text) else None


def _expand(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
