"""These tests run models; without torch there is nothing here to collect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quiet_models import IGNORED, quiet_and_few_threads

__all__ = ["quiet_and_few_threads"]  # a fixture of every test here
collect_ignore_glob = IGNORED


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
