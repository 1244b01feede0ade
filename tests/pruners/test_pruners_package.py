"""What ``import pruners`` gives, and what ``python -m`` runs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import pruners


@pytest.mark.parametrize("module", ["select", "taylor", "reconstruct"])
def test_function_of_the_name_of_its_module_is_the_function_whatever_was_imported(module: str) -> None:
    loaded = import_module(f"pruners.{module}")
    assert isinstance(loaded, ModuleType)
    assert getattr(pruners, module) is getattr(loaded, module)


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
