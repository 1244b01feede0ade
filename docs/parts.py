"""The generated parts of pages by their names: ``<!-- begin NAME -->`` to ``<!-- end NAME -->``."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.reference import python_reference, testing_reference
from docs.rule_pages import cell, rule_table
from gqacheck.cli import main as gqacheck
from gqacheck.flags import FLAGS, GROUPS, Flag
from gqacheck.settings import _GENERAL

ROOT = Path(__file__).resolve().parent.parent


def demo_output() -> str:
    """What ``gqacheck demo`` prints, in an empty folder."""
    return _fenced("$ gqacheck demo\n" + _run("demo"))


def help_output() -> str:
    """What ``gqacheck --help`` prints."""
    return _fenced(_run("--help"))


def settings_table() -> str:
    """Every key of ``[tool.gqacheck]``: what it takes, whether it may stand under ``paths``, and what it is for."""
    tables = []
    for title, flags in GROUPS:
        rows = [
            f"| `{flag.name[2:]}` | {_takes(flag)} | {_under_paths(flag)} | {cell(_about(flag))} |"
            for flag in flags
            if flag.setting
        ]
        head = [
            f"**{title[0].upper()}{title[1:]}**",
            "",
            "| key | takes | under `paths` | what it is |",
            "|---|---|---|---|",
        ]
        tables += ["\n".join([*head, *rows])] if rows else []
    return "\n\n".join(tables) + "\n"


def command_line_only() -> str:
    """Options that no settings file may hold, in a sentence."""
    names = [f"`{flag.name}`" for flag in FLAGS.values() if not flag.setting]
    return f"Only on the command line: {', '.join(names)}.\n"


def plugin_options() -> str:
    """The options that the plugin adds to pytest."""
    from gqacheck.pytest_plugin import _OPTIONS

    rows = []
    for name, settings in _OPTIONS:
        value = f"={settings['metavar']}" if "metavar" in settings else ""
        value = f"[{value}]" if settings.get("nargs") == "?" else value
        rows.append(f"| `{name}{value}` | {cell(settings['help'])} |")
    return "\n".join(["| option | what it does |", "|---|---|", *rows]) + "\n"


def action_inputs() -> str:
    """The inputs of action.yml with their defaults; two levels of its own plain layout are all that is read."""
    rows, name, about = [], "", ""
    for line in (ROOT / "action.yml").read_text(encoding="utf-8").partition("\ninputs:\n")[2].splitlines():
        if not line.startswith("  "):
            break
        key, _, value = line.strip().partition(":")
        if not line.startswith("    "):
            name = key
        elif key == "description":
            about = value.strip()
        elif key == "default":
            value = value.strip().strip('"')
            rows.append(f"| `{name}` | {f'`{value}`' if value else 'empty'} | {cell(about)} |")
    return "\n".join(["| input | default | what it is |", "|---|---|---|", *rows]) + "\n"


PARTS: Mapping[str, Callable[[], str]] = {
    "action": action_inputs,
    "api": python_reference,
    "api-testing": testing_reference,
    "command-line-only": command_line_only,
    "demo": demo_output,
    "help": help_output,
    "plugin": plugin_options,
    "rules": rule_table,
    "settings": settings_table,
}


def _takes(flag: Flag) -> str:
    if not flag.metavar:
        return "`true` or `false`"
    if flag.repeat:
        return "`true` (the built-in text), a text or a list"
    if flag.metavar in ("NAMES", "CODES"):
        return "a list of texts"
    if flag.metavar == "N":
        return "a whole number"
    if flag.metavar == "X":
        return "a number"
    return "a path" if flag.path else "a text"


def _under_paths(flag: Flag) -> str:
    return "no" if flag.key in _GENERAL else "yes"


def _about(flag: Flag) -> str:
    return flag.help.replace("; repeatable", "").replace("--", "").replace("*", "\\*")


def _run(*argv: str) -> str:
    out, here = io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        try:
            code = gqacheck(list(argv), out, sys.stderr)
        finally:
            os.chdir(here)
    if code:
        raise RuntimeError(f"gqacheck {' '.join(argv)} returned {code}")
    return out.getvalue()


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"
