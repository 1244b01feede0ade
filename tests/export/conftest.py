"""Exports are loaded by a process of its own that has no gqacheck; without torch there is nothing here to collect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from quiet_models import IGNORED, quiet_and_few_threads

__all__ = ["quiet_and_few_threads"]  # a fixture of every test here
collect_ignore_glob = IGNORED


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
