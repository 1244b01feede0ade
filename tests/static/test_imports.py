"""What the static path imports: nothing heavy, and nothing upward. And proof that these tests can fail."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from gqacheck.testing.sketch import sketch_llama

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gqacheck"
HEAVY = frozenset(
    ("torch", "numpy", "transformers", "datasets", "rich", "safetensors", "tokenizers", "peft", "huggingface_hub",
     "sentencepiece", "accelerate", "scipy", "pandas")
)  # fmt: skip
SLOW_STDLIB = frozenset(("asyncio", "email", "urllib.request", "http", "unittest", "multiprocessing", "ssl", "sqlite3"))
ORDER = (
    ("errors", "text", "flags"),
    ("checkpoint", "place"),
    ("formats",),
    ("geometry",),
    ("rules",),
    ("result", "claims"),
    ("lineage",),
    ("runtime",),
    ("options", "pipeline", "api", "baseline"),
    ("report",),
    ("repair", "export", "compare"),
    (
        "cli", "cli_generate", "screen", "arguments", "settings", "__main__", "pytest_plugin", "plugin",
        "integrations", "demo", "testing",
    ),
)  # fmt: skip
"""Layers of the package, lowest first. A module imports at module level from its own layer and from those below."""


def modules_after(code: str, *argv: str) -> set[str]:
    """The names in ``sys.modules`` after ``code`` ran in a fresh interpreter with ``argv``."""
    script = f"import sys, json\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def forbidden(modules: Iterable[str]) -> set[str]:
    """Those of ``modules`` that belong to a heavy package or to the slow part of the standard library."""
    return {name for name in modules if name.partition(".")[0] in HEAVY or name in SLOW_STDLIB}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A broken checkpoint, so that every static stage has something to do."""
    sketch = sketch_llama(n_layers=2)
    sketch.resize("model.layers.1.mlp.gate_proj", rows=96)
    return sketch.write_module(tmp_path_factory.mktemp("imports") / "m.bin")


@pytest.mark.parametrize(
    "words", [["{}"], ["{}", "--format", "json"], ["{}", "--base", "{}"], ["rules"], ["explain", "GQA703"], ["--help"]]
)
def test_static_command_imports_nothing_heavy(checkpoint: Path, words: list[str]) -> None:
    argv = [word.format(checkpoint) for word in words]
    found = modules_after("import io\nfrom gqacheck.cli import main\nmain(sys.argv[1:], io.StringIO())", *argv)
    assert "gqacheck.cli" in found
    assert forbidden(found) == set()


def test_version_imports_no_more_than_it_needs() -> None:
    found = modules_after("import io\nfrom gqacheck.cli import main\nmain(['--version'], io.StringIO())")
    needed = {"gqacheck", "gqacheck.cli", "gqacheck.errors", "gqacheck.screen"}
    assert {name for name in found if name.startswith("gqacheck")} == needed
    assert found.isdisjoint({"dataclasses", "inspect", "argparse", "re", "json.decoder", "pathlib"} - baseline())


def baseline() -> set[str]:
    """What a bare interpreter of this environment has loaded anyway (site packages may bring some)."""
    return modules_after("")


def test_pytest_plugin_imports_nothing_that_pytest_has_not() -> None:
    found = modules_after("import pytest\nimport gqacheck.pytest_plugin") - modules_after("import pytest")
    assert found <= {"gqacheck", "gqacheck.pytest_plugin"}


@pytest.mark.parametrize("switch", [[], ["-p", "no:gqacheck"]])
def test_pytest_runs_with_the_plugin_and_without_it(tmp_path: Path, switch: list[str]) -> None:
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *switch, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "gqacheck" not in done.stdout


def test_the_check_for_heavy_modules_can_fail(tmp_path: Path) -> None:
    """A stand-in of each forbidden name is imported on the way: the same check must then name every one."""
    names = sorted(HEAVY | SLOW_STDLIB)
    for name in names:
        folder = tmp_path
        for part in name.split("."):
            folder /= part
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").write_text("")
    found = modules_after(f"sys.path.insert(0, {str(tmp_path)!r})\nimport {', '.join(names)}\nimport gqacheck.cli")
    assert set(names) <= forbidden(found)


def imports_of(source: str, package: str) -> set[str]:
    """Modules that ``source`` imports when it is imported itself: not those in functions or under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], base]).rstrip(".")
            found.add(base)
            if base == "gqacheck":
                found |= {f"gqacheck.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, (ast.Try, ast.With, ast.ClassDef)):
            waiting += node.body
            if isinstance(node, ast.Try):
                waiting += [*(s for handler in node.handlers for s in handler.body), *node.orelse, *node.finalbody]
    return found


def rank(module: str) -> int | None:
    """The layer of ``gqacheck.x.y``; None for the package itself and for what is not ours."""
    parts = module.split(".")
    if parts[0] != "gqacheck" or len(parts) < 2:
        return None
    for height, names in enumerate(ORDER):
        if parts[1] in names:
            return height
    return None


def climbing(module: str, source: str, package: str) -> set[str]:
    """What ``module`` imports from a higher layer than its own."""
    own = rank(module)
    assert own is not None, f"{module} has no layer: add it to ORDER"
    found = set()
    for name in imports_of(source, package):
        height = rank(name)
        if height is not None and height > own:
            found.add(name)
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.relative_to(PACKAGE).parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_downward_and_never_the_pruners(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if module == "gqacheck":
        return
    source = path.read_text(encoding="utf-8")
    assert climbing(module, source, ".".join(parts[:-1])) == set()
    assert not any(name.partition(".")[0] == "pruners" for name in imports_of(source, ".".join(parts[:-1])))


@pytest.mark.parametrize(
    "source",
    [
        "from gqacheck.report.text import render_text",
        "import gqacheck.cli",
        "from ..report import text",
        "try:\n    import gqacheck.report\nexcept ImportError:\n    pass",
        "if 1:\n    from gqacheck import report",
    ],
)
def test_the_check_for_the_import_rule_can_fail(source: str) -> None:
    assert climbing("gqacheck.rules.mlp", source, "gqacheck.rules")


@pytest.mark.parametrize(
    "source",
    [
        "from gqacheck.geometry.facts import Subject",
        "def f():\n    from gqacheck.report import text",
        "if TYPE_CHECKING:\n    from gqacheck.report import text",
        "import json",
    ],
)
def test_the_check_for_the_import_rule_allows_what_is_allowed(source: str) -> None:
    assert climbing("gqacheck.rules.mlp", source, "gqacheck.rules") == set()


def ruff(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Ruff with the project's settings, where it is installed."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "TID253", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed here")
    return done


def test_no_module_of_the_static_path_imports_a_heavy_package_at_module_level() -> None:
    done = ruff("gqacheck")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["torch", "numpy", "transformers", "datasets", "rich", "safetensors"])
def test_the_rule_against_heavy_imports_can_fail(tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(f"import {name}\n")
    done = ruff("--config", str(ROOT / "pyproject.toml"), str(bad), cwd=tmp_path)
    assert done.returncode == 1
    assert "TID253" in done.stdout


def test_the_banned_list_of_ruff_holds_what_this_file_forbids() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    banned = settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
    assert {"torch", "numpy", "transformers", "datasets", "rich", "safetensors"} <= set(banned)
    assert os.path.commonpath([ROOT, PACKAGE]) == str(ROOT)
