"""Pruners work on live models: without torch and transformers there is nothing here to collect."""

from __future__ import annotations

from quiet_models import IGNORED, quiet_and_few_threads

__all__ = ["quiet_and_few_threads"]  # a fixture of every test here
collect_ignore_glob = IGNORED
