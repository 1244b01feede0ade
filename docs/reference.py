"""The API reference, from signatures and docstrings as they are written; nothing is imported but lazy package roots.

The source is read with ``ast``, so that what needs torch or hypothesis is described where neither is installed.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

import gqacheck
import gqacheck.testing

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 100
"""Characters of a signature on one line."""
NAMED = re.compile(r"^(\w+(?:, \w+)*): ")
BESIDE = (
    ("gqacheck.integrations.transformers", "PreflightCallback"),
    ("gqacheck.api", "UnsoundModelError"),
    ("gqacheck.result", "CheckpointReport"),
    ("gqacheck.result", "ClaimResult"),
    ("gqacheck.rules.rule", "Finding"),
)
"""Documented beside ``gqacheck.__all__``: what the functions return, raise, or what stands in for them elsewhere."""
Definition: TypeAlias = ast.FunctionDef | ast.ClassDef


def python_reference() -> str:
    """``gqacheck`` itself: its functions, then the callback and what the functions return and raise."""
    functions = [(gqacheck._LAZY[name], name) for name in gqacheck.__all__ if name in gqacheck._LAZY]
    named = [("gqacheck", module, name) for module, name in functions]
    return _entries([*named, *((module, module, name) for module, name in BESIDE)])


def testing_reference() -> str:
    """``gqacheck.testing``: everything that it exports."""
    root = gqacheck.testing
    return _entries([(root.__name__, f"{root.__name__}.{root._LAZY[name]}", name) for name in root.__all__])


def _entries(named: list[tuple[str, str, str]]) -> str:
    return "\n".join(_entry(shown, *_found(module, name)) for shown, module, name in named)


def _entry(module: str, name: str, node: Definition) -> str:
    """One function or class, with the public methods of the class."""
    parts = [f"### {name}", f"```python\n{_from(module, name)}{_signature(node)}\n```", markdown(_doc(node))]
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                shown = method.name if _is_property(method) else _signature(method, bound=True)
                body = markdown(_doc(method))
                parts.append(f"**`{shown}`**\n\n{body}" if len(shown) <= LONGEST else f"**`{method.name}`**\n\n{body}")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _from(module: str, name: str) -> str:
    return f"from {module} import {name}\n\n"


def _doc(node: Definition) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _found(module: str, name: str) -> tuple[str, Definition]:
    """The definition of a name, wherever the module has it from.

    Raises LookupError when it is none of ours.
    """
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in _tree(path).body:
        if isinstance(node, Definition) and node.name == name:
            return name, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _found(node.module, name)
    raise LookupError(f"{module} has no {name}")


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)


def _signature(node: Definition, *, bound: bool = False) -> str:
    """As it is called: a class with what it takes; a function without self where it is bound."""
    if isinstance(node, ast.ClassDef):
        start = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        if start is not None:
            return _laid_out(f"class {node.name}", _arguments(start.args, skip=1))
        if not any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
            return f"class {node.name}"
        return _laid_out(f"class {node.name}", [_field(item) for item in node.body if isinstance(item, ast.AnnAssign)])
    drawn = any(ast.unparse(mark) == "st.composite" for mark in node.decorator_list)
    returns = ast.unparse(node.returns) if node.returns else ""
    ending = f" -> {f'SearchStrategy[{returns}]' if drawn else returns}" if returns else ""
    name = node.name if bound else f"def {node.name}"
    return _laid_out(name, _arguments(node.args, skip=1 if bound or drawn else 0), ending)


def _laid_out(name: str, words: list[str], ending: str = "") -> str:
    line = f"{name}({', '.join(words)}){ending}"
    if len(line) <= LONGEST:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){ending}"


def _field(item: ast.AnnAssign) -> str:
    text = ast.unparse(item)
    return re.sub(r" = field\(default_factory=(dict|tuple|list)\)", r" = \1()", text)


def _arguments(given: ast.arguments, skip: int) -> list[str]:
    """Each argument as it is written, in order, with the bare ``*``."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    words = [_argument(one, default) for one, default in zip(plain, defaults, strict=True)][skip:]
    if given.vararg:
        words.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        words.append("*")
    words += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return words + ([f"**{_argument(given.kwarg, None)}"] if given.kwarg else [])


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    typed = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    if default is None:
        return typed
    return f"{typed}{' = ' if one.annotation else '='}{ast.unparse(default)}"


def markdown(doc: str) -> str:
    """A docstring of ours as Markdown: its examples fenced, its ``Raises:`` a list, its arguments a list."""
    return re.sub(r"(?<!`)``(?!`)", "`", "\n\n".join(_paragraph(lines) for lines in _paragraphs(doc)))


def _paragraphs(doc: str) -> Iterator[list[str]]:
    """Blocks of lines between blank ones; indented ones that follow each other are one."""
    block: list[str] = []
    for text in re.split(r"\n\s*\n", doc):
        lines = text.splitlines()
        if block and block[0].startswith("    ") and lines[0].startswith("    "):
            block += ["", *lines]
            continue
        if block:
            yield block
        block = lines
    if block:
        yield block


def _paragraph(lines: list[str]) -> str:
    if lines[0].startswith("    "):
        code = inspect.cleandoc("\n".join(lines))
        return f"```{'pycon' if code.startswith('>>>') else 'python'}\n{code}\n```"
    if lines[0] == "Raises:":
        return "Raises:\n\n" + _listed([line.removeprefix("    ") for line in lines[1:]])
    if len(lines) > 1 and all(line.startswith("    ") or NAMED.match(line) for line in lines):
        return _listed(lines)
    text = "\n".join(lines)
    return text[:-1] if text.endswith("::") else text


def _listed(lines: list[str]) -> str:
    """Lines of ``name: what it is``, each with the indented ones that go on, as a list."""
    return "\n".join(
        f"  {line.strip()}" if line.startswith("    ") else f"- {NAMED.sub(_marked, line)}" for line in lines
    )


def _marked(match: re.Match[str]) -> str:
    return ", ".join(f"`{name}`" for name in match[1].split(", ")) + ": "
