"""Where a repair is written; how, is in ``gqacheck.place``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from gqacheck import place
from gqacheck.repair.facts import CannotRepair

FILE_ENDINGS = (".bin", ".pt", ".pth", ".safetensors")
"""A destination that ends so is a file; any other is a folder."""
_LABEL = "-o"


def names_a_file(out: str) -> bool:
    """Whether the destination is one weight file."""
    return out.endswith(FILE_ENDINGS)


def check_destination(out: str, sources: Sequence[str]) -> None:
    """Nothing, when ``out`` is free and lies outside of ``sources`` (the checkpoint's and the parent's paths).

    Raises:
        UsageError: it exists (an empty folder may), its folder does not, or it is one of the sources or inside one.
    """
    place.check_destination(out, sources, label=_LABEL, file=names_a_file(out))


def workplace(out: str) -> AbstractContextManager[str]:
    """A folder beside ``out`` to write in, removed at the end whatever happens.

    Raises:
        CannotRepair: there is no space left, or nothing can be written there; one line.
    """
    return place.workplace(out, CannotRepair)


def require_space(folder: str, nbytes: int) -> None:
    """Nothing, when ``nbytes`` fit on the disk of ``folder``.

    Raises:
        CannotRepair: they do not.
    """
    place.require_space(folder, nbytes, CannotRepair, what="the repair")


def move_into_place(made: str, out: str) -> None:
    """Gives ``made`` (a file or folder on the same disk) its final name in one step and never replaces anything.

    Raises:
        UsageError: something has appeared there in the meantime.
    """
    place.move_into_place(made, out, label=_LABEL)
