"""A progress bar on standard error for what takes longer than a glance: loading weights, perplexity windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from gqacheck.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """Called with (what, steps done, steps in all); draws through rich and takes its lines away when closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``what`` are over."""
        if self._progress is None:
            self._start()
        assert self._progress is not None
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(printable(what, 40), total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream, highlight=False, emoji=False),
            transient=True,
        )
        self._progress.start()

    def close(self) -> None:
        """Takes the bar off the screen; the next call starts a new one."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = {}
