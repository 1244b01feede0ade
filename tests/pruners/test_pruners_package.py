"""What ``import pruners`` gives, and what ``python -m`` runs."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import iter_modules
from types import ModuleType

import pytest

import pruners


def test_no_function_has_the_name_of_a_module() -> None:
    """Importing a module binds it to its package, over a function of the same name."""
    modules = {found.name for found in iter_modules(pruners.__path__)}
    assert "selection" in modules
    assert not modules & set(pruners.__all__)


def test_everything_that_is_public_is_there_and_no_module() -> None:
    for name in pruners.__all__:
        assert not isinstance(getattr(pruners, name), ModuleType), name
    assert sorted(pruners.__all__) == sorted(pruners._LAZY)


def test_without_torch_the_message_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pruners\n"
        "try: pruners.dissect\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "MissingDependency pruners.dissect needs the [run] extra: pip install 'gqacheck[run]'\n"


@pytest.mark.parametrize("module", ["pruners", "pruners.cli"])
def test_module_run_is_the_command_and_imports_no_torch_for_help(module: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']; sys.modules['torch'] = None\n"
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout.startswith("usage: gqaprune")) == (0, True), made.stderr
