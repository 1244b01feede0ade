"""What mkdocs.yml cannot say: rules in the navigation, links on their codes, files outside docs/ that pages link to.

On the code host a page links to ``../benchmarks/README.md``; the site has a copy of that file, and links are rewritten
to where it stands there: docs/ at the root, everything else by its path in the repository.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)")
CODE = re.compile(r"```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)|^#[^\n]*|\b(GQA\d{3})\b", re.DOTALL | re.MULTILINE)
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Pages that nothing need link to."""


def on_config(config: Any) -> Any:
    """The rules into the navigation, by group."""
    pages: list[Any] = ["rules/index.md"]
    for path in sorted((ROOT / "docs" / "rules").glob("GQA*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        group = f"{path.stem[:4]}xx"
        if not isinstance(pages[-1], dict) or group not in pages[-1]:
            pages.append({group: []})
        pages[-1][group].append({title: f"rules/{path.name}"})
    next(entry for entry in config["nav"] if "Rules" in entry)["Rules"] = pages
    return config


def on_files(files: Files, config: Any) -> Files:
    """Files outside docs/ that are linked to, and those that these link to."""
    waiting = list(PROJECT)
    for file in files.documentation_pages():
        waiting += _outside(f"docs/{file.src_uri}", file.content_string)
    while waiting:
        name = waiting.pop()
        path = ROOT / name
        if files.get_file_from_path(name) is None and path.is_file():
            files.append(File.generated(config, name, abs_src_path=str(path)))
            waiting += _outside(name, path.read_text(encoding="utf-8")) if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they stand on the site, and codes of rules as links to their pages."""
    here = _in_repository(page.file)
    folder = posixpath.dirname(page.file.src_uri) or "."

    def rewritten(match: re.Match[str]) -> str:
        target = _on_site(_target(here, match[1]))
        return f"]({posixpath.relpath(target, folder)}{match[2] or ''})"

    def linked(match: re.Match[str]) -> str:
        path = f"rules/{match[1]}.md"
        if match[1] is None or path == page.file.src_uri or not (ROOT / "docs" / path).exists():
            return match[0]
        return f"[{match[1]}]({posixpath.relpath(path, folder)})"

    return CODE.sub(linked, LINK.sub(rewritten, markdown))


def _in_repository(file: File) -> str:
    return f"docs/{file.src_uri}" if file.generated_by is None else file.src_uri


def _on_site(path: str) -> str:
    return path.removeprefix("docs/")


def _target(here: str, link: str) -> str:
    """The path in the repository of what a page links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _outside(here: str, text: str) -> list[str]:
    targets = [_target(here, match[1]) for match in LINK.finditer(text)]
    return [target for target in targets if not target.startswith(("docs/", ".."))]
