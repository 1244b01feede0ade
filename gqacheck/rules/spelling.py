"""How the subject's own config calls a thing, for messages and fixes."""

from __future__ import annotations

from gqacheck.geometry.config import config_key, text_config
from gqacheck.geometry.facts import Subject


def spelled(subject: Subject, key: str) -> str:
    """The config's own word for ``key`` (Mixtral: ``num_local_experts``, Falcon: ``num_kv_heads``)."""
    return config_key(subject.geometry.family, key, text_config(subject.checkpoint)[0])


def config_name(subject: Subject) -> str:
    """What messages call the config: ``config.json``, ``pickled config``; ``the config`` when there is none."""
    return subject.geometry.config_source or "the config"
