"""The exceptions that gqacheck raises on purpose; each is one sentence a user can act on."""

from __future__ import annotations


class GqacheckError(Exception):
    """Base of every error that gqacheck raises on purpose.

    ``exit_code`` is what the command line returns for it (DESIGN: 2 usage, 3 could not check).
    """

    exit_code: int = 3


class ReadError(GqacheckError):
    """The file could not be read at all: missing, truncated, of another kind, or hostile (exit 3)."""


class NotACheckpoint(ReadError):
    """The file was recognised, and is something gqacheck does not check (exit 3).

    The message names what it is and, where one exists, the command that converts it.
    """


class UsageError(GqacheckError):
    """The caller asked for something impossible or contradictory (exit 2)."""

    exit_code = 2


class MissingDependency(GqacheckError):
    """A feature needs an extra that is not installed; the message names the extra (exit 3)."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the [{extra}] extra: pip install 'gqacheck[{extra}]'")
        self.feature = feature
        self.extra = extra


def reason_of(error: BaseException) -> str:
    """One sentence for what stopped a check."""
    if isinstance(error, MemoryError):
        return "it needs more memory than this machine has"
    if isinstance(error, RecursionError):
        return "it is nested too deeply to be read"
    if isinstance(error, OSError) and not isinstance(error, GqacheckError):
        return f"{error.filename or 'the file'}: {error.strerror or error}"
    return str(error) or type(error).__name__
