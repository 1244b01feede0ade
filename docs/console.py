"""``python -m docs.console PAGE``: prints a page with the output of its commands as it is today.

A fenced block of language ``console`` holds commands behind ``$ `` (one that ends in ``\\`` goes on behind ``> ``);
what stands between them is their output, with a line ``exit code 1`` where it was not 0. A fenced block
with ``title="NAME"`` is a file of that name. Files are written and commands run in the order of the page, in one
scratch folder, which holds the repository's ``fixtures/`` and nothing else.

A page with ``<!-- console: needs torch, peft -->`` runs only where these can be imported. They are imported once, and
every ``gqacheck``, ``gqaprune``, ``pytest`` and ``python`` is a fork of this process; anything else goes to the shell.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
NEEDS = re.compile(r"<!-- console: needs ([\w, ]+) -->")
FORKED = ("gqacheck", "gqaprune", "pytest", "python")
SHELL = frozenset("&;<>*?$`~")
"""Characters that only a shell understands."""
SILENT = " 2> /dev/null"
"""This much of redirection is understood here."""
CALM = {
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "gqacheck.pytest_plugin",
    "PYTHONUTF8": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment: one thread, so that a process can be forked and figures are the same; no network; no colours."""
PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "SYSTEMROOT", "TMPDIR")
"""All that a page sees of the environment it is run in: with ``CI`` set, say, pytest prints another summary."""


def needs(page: str) -> tuple[str, ...]:
    """Modules that the commands of a page cannot do without."""
    return tuple(name.strip() for found in NEEDS.findall(page) for name in found.split(","))


def has_commands(page: str) -> bool:
    """Whether anything on the page is to be run."""
    return any(match["info"].strip() == "console" for match in FENCE.finditer(page))


def can_run(page: str) -> bool:
    """Whether everything that the page needs is installed."""
    return all(find_spec(name) for name in needs(page))


def replayed(page: str) -> str:
    """The page with the output of its commands as a process of its own sees it, of today.

    Raises RuntimeError when they could not be run.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".md", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        paths = {"PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '')}", "PYTHONPATH": str(ROOT)}
        made = subprocess.run(
            [sys.executable, "-m", "docs.console", file.name], cwd=ROOT, env={**kept, **CALM, **paths},
            capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"a page could not be run:\n{made.stderr}")
    return made.stdout


def run_page(page: str, folder: Path) -> str:
    """The page with its commands run in ``folder``, in this process and its forks."""

    def run(match: re.Match[str]) -> str:
        info, body = match["info"], match["body"]
        if title := TITLE.search(info):
            target = folder / title[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(body, encoding="utf-8")
        if info.strip() != "console":
            return match[0]
        shown = "\n".join(f"$ {command}\n{_said(command, folder)}" for command in commands(body))
        return f"{match['fence']}{info}\n{shown}{match['fence']}"

    return FENCE.sub(run, page)


def commands(body: str) -> Iterator[str]:
    """The commands of a block as they are written, without the prompts of their first lines."""
    lines = iter(body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command += "\n" + next(lines)
            yield command


def _said(command: str, folder: Path) -> str:
    """What a command prints, with a line on its exit code where that is not 0."""
    plain = re.sub(r"\\\n> ?", "", command)
    first, pipe, rest = plain.partition(" | ")
    first = first.removesuffix(SILENT)
    words = shlex.split(first, comments=True)
    if words[0] in FORKED and not SHELL & set(first):
        code, output = _forked(words, folder, silent=f"{first}{SILENT}" in plain)
        if pipe:
            code, output = _shell(rest, folder, output)
    else:
        code, output = _shell(plain, folder)
    text = output.decode("utf-8", "replace").replace(f"{folder}/", "").replace(str(folder), ".")
    text = "\n".join(line.rpartition("\r")[2].rstrip() for line in text.splitlines())
    if re.search(r"^(\$ |```)", text, re.MULTILINE):
        raise ValueError(f"{command!r} prints what looks like a command or a fence: it cannot stand on a page")
    return (f"{text}\n" if text else "") + (f"exit code {code}\n" if code else "")


def _shell(command: str, folder: Path, given: bytes = b"") -> tuple[int, bytes]:
    made = subprocess.run(
        ["bash", "-c", command], cwd=folder, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return made.returncode, made.stdout


def _forked(words: list[str], folder: Path, *, silent: bool) -> tuple[int, bytes]:
    """Exit code and output of a Python program in a fork, which has imported already what it needs."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY) if silent else writing, 2)
        os._exit(_exit_code(words, folder))
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        output = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def _exit_code(words: list[str], folder: Path) -> int:
    import traceback

    code: object = 0
    try:
        os.chdir(folder)
        _become(words, folder)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code) if isinstance(code, int) else 0


def _become(words: list[str], folder: Path) -> None:
    """Run what a shell would have started."""
    import runpy

    sys.argv = words
    if words[0] in ("gqacheck", "pytest"):
        runpy.run_module(words[0], run_name="__main__")
    elif words[0] == "gqaprune":
        from pruners.cli import run

        run()
    else:
        sys.path[0] = str(folder)
        sys.argv = words[2:] if words[1] == "-m" else words[1:]
        if words[1] == "-m":
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[1], run_name="__main__")


def main() -> int:
    """Print the page that is named, run in a folder of its own."""
    page = Path(sys.argv[1]).read_text(encoding="utf-8")
    for name in needs(page):
        import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        (folder / "fixtures").symlink_to(ROOT / "fixtures")
        os.environ["HOME"] = scratch
        sys.stdout.write(run_page(page, folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
