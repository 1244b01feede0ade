"""These tests run models; without torch there is nothing here to collect."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def rebuild_file() -> Any:
    """path, config -> what ``rebuild`` makes of the file, in float32 on the CPU."""
    import torch

    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure
    from gqacheck.runtime.rebuild import rebuild

    def make(path: Path | str, config: Path | str | None = None, **options: Any) -> Any:
        checkpoint = open_checkpoint(str(path), config=None if config is None else str(config))
        return rebuild(checkpoint, measure(checkpoint), **{"dtype": torch.float32, **options})

    return make
