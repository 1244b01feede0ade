"""``python -m docs.generate``: writes the generated parts of READMEs and docs; ``--check`` only compares.

Three kinds of text are generated: what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``
(``docs.parts``), whole pages (a page per rule and their index), and the output of the commands in ``console`` blocks
(``docs.console``). Times are those of the run that wrote it, and figures of models may differ in their last digits;
comparing leaves the former out and is lenient with the latter.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from docs.console import can_run, has_commands, needs, replayed
from docs.parts import PARTS
from docs.rule_pages import rule_pages

ROOT = Path(__file__).resolve().parent.parent
TIMES = re.compile(r"\b\d+(\.\d+)? ?(s|ms)\b")
NUMBER = re.compile(r"\d[\d,]*\.\d+(?:e[+-]?\d+)?")
LENIENT = 0.02
"""Share by which a figure of a page that runs models may differ: another processor rounds in another place."""
READMES = ("README.md", "README.zh-CN.md")


def files() -> dict[Path, str]:
    """Every generated file, or file with generated parts, with the text it should have, but for commands' output."""
    made: dict[str, str] = {}
    wanted = {ROOT / "docs" / name: text for name, text in rule_pages().items()}
    for path in (*(ROOT / name for name in READMES), *pages()):
        text = path.read_text(encoding="utf-8")
        for part, make in PARTS.items():
            begin, end = f"<!-- begin {part} -->\n", f"<!-- end {part} -->"
            if begin in text:
                if part not in made:
                    made[part] = make()
                before, _, rest = text.partition(begin)
                text = before + begin + made[part] + end + rest.partition(end)[2]
        wanted[path] = text
    return wanted


def pages() -> Iterator[Path]:
    """The written pages of docs, in order: all but those of the rules."""
    yield from sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "rules")


def pages_with_commands() -> list[Path]:
    """Pages whose ``console`` blocks are run."""
    return [path for path in pages() if has_commands(path.read_text(encoding="utf-8"))]


def same(one: str, other: str) -> bool:
    """Whether two texts say the same; times do not count, and of a page that runs models last digits do not."""
    if not needs(one):
        return TIMES.sub("", one) == TIMES.sub("", other)
    one, other = TIMES.sub("", one), TIMES.sub("", other)
    pairs = zip_longest(NUMBER.findall(one), NUMBER.findall(other), fillvalue="0")
    return NUMBER.sub("#", one) == NUMBER.sub("#", other) and all(_close(a, b) for a, b in pairs)


def _close(one: str, other: str) -> bool:
    """Whether two figures are the same to the eye; of rounding errors (3.8e-06) only that they are small counts."""
    a, b = (float(text.replace(",", "")) for text in (one, other))
    return abs(a - b) <= max(LENIENT * abs(a), 1e-4)


def drift() -> list[Path]:
    """The files that do not say what the code says today; the output of commands is left to ``command_drift``."""
    return [path for path, text in files().items() if not path.exists() or not same(path.read_text("utf-8"), text)]


def command_drift(path: Path) -> str | None:
    """The page as it should be when its commands print something else today; None when it has not drifted."""
    text = path.read_text(encoding="utf-8")
    today = replayed(text)
    return None if same(text, today) else today


def main() -> int:
    """Write what drifted, or with ``--check`` name it; 1 when something had drifted under ``--check``."""
    wanted = files()
    stale = {path: wanted[path] for path in drift()}
    if "--check" not in sys.argv[1:]:
        _write(stale)
    for path in pages_with_commands():
        text = path.read_text(encoding="utf-8")
        if not can_run(text):
            print(f"{path.relative_to(ROOT)}: left as it is, needs {', '.join(needs(text))}")
        elif today := command_drift(path):
            stale[path] = today
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} has drifted; run: make docs")
        return 1 if stale else 0
    _write(stale)
    for path in stale:
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
