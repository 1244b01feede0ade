"""docs/contract.md as a stranger would use it: in a folder of its own, in a process that has no ``pruners``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE, re.S))
NO_PRUNERS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pruners", "fixtures"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())

def pytest_configure(config):
    import torch
    torch.set_num_threads(1)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of the page's own test files and, beside them, of the toy pruner with the page's mistake."""
    folder = tmp_path_factory.mktemp("stranger")
    for title, body in BLOCKS.items():
        if title.endswith(".py"):
            (folder / title).write_text(body, encoding="utf-8")
    removed, added = (re.search(rf"```diff\n.*?^{sign}(.*?)$", PAGE, re.S | re.M)[1] for sign in (r"\-", r"\+"))
    right = BLOCKS["toy_pruner.py"]
    assert right.count(removed) == 1
    (folder / "wrong_pruner.py").write_text(right.replace(removed, added), encoding="utf-8")
    wrong_test = BLOCKS["test_toy_pruner.py"].replace("toy_pruner", "wrong_pruner").replace("TestToy", "TestWrong")
    (folder / "test_wrong_pruner.py").write_text(wrong_test, encoding="utf-8")
    (folder / "conftest.py").write_text(NO_PRUNERS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--color=no"]
    environment = {name: value for name, value in os.environ.items() if name != "GQACHECK_CASES"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcomes(told: str, file: str) -> Counter[str]:
    return Counter(re.findall(rf"^{file}::\S+ (PASSED|FAILED|SKIPPED)", told, re.M))


def test_toy_pruner_of_the_page_passes_as_the_page_says(told: str) -> None:
    assert outcomes(told, "test_toy_pruner.py") == {"PASSED": 11, "SKIPPED": 1}
    assert "Eleven properties pass" in PAGE
    assert outcomes(told, "test_own_property.py") == {"PASSED": 2}


def test_mistake_of_the_page_fails_as_the_page_shows(told: str) -> None:
    assert outcomes(told, "test_wrong_pruner.py") == {"PASSED": 9, "FAILED": 2, "SKIPPED": 1}
    for line in BLOCKS["pytest"].splitlines():
        assert f"\n{line}" in told, line
    assert "holding.py" not in told  # our message, not our stack
    assert "contract.py" not in told


def test_case_of_the_page_can_be_built_by_hand() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS["by hand"], names)  # noqa: S102 - the page's own lines
    assert str(names["config"]) == "llama, 1 layer, 6 query heads on 3 KV heads, head_dim 4, 8 channels"
    assert str(names["request"]) == "remove 0.5 of the KV groups of all layers, seed 0"


def test_page_names_every_property_and_every_declaration() -> None:
    from gqacheck.testing import PrunerContract

    properties = {name.removeprefix("test_") for name in dir(PrunerContract) if name.startswith("test_")}
    declared = {name for name in PrunerContract.__annotations__ if not name.startswith("_")}
    assert len(properties) == 12
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M)) == properties | declared
    assert f"| `examples` | `{PrunerContract.examples}` |" in PAGE
    assert f"| `rounding` | `{PrunerContract.rounding}` |" in PAGE
    assert f"| `families` | {', '.join(PrunerContract.families)} |" in PAGE
    ratios = ", ".join(f"{group * kv}:{kv}" for group, kv in PrunerContract.ratios)
    assert f"| `ratios` | {ratios} |" in PAGE
