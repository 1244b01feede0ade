"""Why a rule cannot run on a subject, as (needs, reason): one function per thing that rules need."""

from __future__ import annotations

from gqacheck.geometry.facts import Subject


def needs_config(subject: Subject) -> tuple[str, str] | None:
    """A config to compare with."""
    if subject.config is None:
        return "config", "there is no config beside the weights; give one with --config"
    return None


def needs_dense_weights(subject: Subject) -> tuple[str, str] | None:
    """Weights whose stored shape is the layer's own."""
    method = subject.checkpoint.quantization
    if method is not None:
        return "dense-weights", f"the weights are packed ({method}): their shapes are the quantiser's, not the layer's"
    return None


def needs_dense_weights_and_config(subject: Subject) -> tuple[str, str] | None:
    """Both: measured sizes, and a config to compare them with."""
    return needs_config(subject) or needs_dense_weights(subject)
