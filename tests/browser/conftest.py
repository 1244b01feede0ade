"""One headless Chromium for the tests of this folder; without one they are skipped, and say what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import Browser, Missing, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser with an empty profile."""
    try:
        started = chromium()
        opened = started.__enter__()
    except Missing as error:
        pytest.skip(f"{error}: install chromium and chromedriver to see the pages in a browser")
    try:
        yield opened
    finally:
        started.__exit__(None, None, None)
