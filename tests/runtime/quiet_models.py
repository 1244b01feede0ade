"""What every folder of tests that runs models shares, for its conftest.py."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

IGNORED = [] if find_spec("torch") and find_spec("transformers") else ["test_*.py"]
"""For ``collect_ignore_glob``: without torch there is nothing to collect."""


@pytest.fixture(autouse=True, scope="session")
def quiet_and_few_threads() -> Iterator[None]:
    """No progress bars and no advice; one thread."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # tiny models: a second thread only waits for the first
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)
