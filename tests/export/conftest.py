"""Exports are loaded by a process of its own that has no gqacheck; without torch there is nothing here to collect."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "runtime"))  # the tiny models and how they are cut

collect_ignore_glob = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_few_threads() -> Iterator[None]:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # tiny models: a second thread only waits for the first
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process with torch and transformers but no gqacheck: ``stranger("answers", folder=…)`` -> its reply."""
    from strangers import Stranger

    one = Stranger(tmp_path_factory.mktemp("stranger"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def older_stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same with transformers 4.57."""
    from strangers import Stranger, consumer

    one = Stranger(tmp_path_factory.mktemp("older"), consumer("transformers-4.57"))
    yield one
    one.close()


@pytest.fixture(scope="session")
def lm_eval_stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same with lm-eval."""
    from strangers import Stranger, consumer

    one = Stranger(tmp_path_factory.mktemp("lm-eval"), consumer("lm-eval"))
    yield one
    one.close()
