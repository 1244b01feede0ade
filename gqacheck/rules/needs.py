"""Why a rule cannot run on a subject, as (needs, reason): one function per thing that rules need."""

from __future__ import annotations

from gqacheck.geometry.facts import Subject
from gqacheck.text import printable


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


def not_measured(subject: Subject, part: str, reason: str) -> str:
    """Why ``part`` of a run (``consistency``, ``generation``) was not measured; ``reason`` when nobody asked for it."""
    runtime = subject.runtime
    if runtime is None or part not in runtime.asked:
        return reason
    if runtime.failure is not None:
        return f"it did not come to that: {printable(runtime.failure, 300)}"
    return "the logits are NaN or infinite (GQA702)" if runtime.non_finite else "it was not measured"
