"""One run of ``gqaprune`` as asked for, checked as far as that goes without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqacheck.errors import UsageError
from pruners.strategies import Ask, ask_of

_OF_SCORING = (
    "strategy", "ratio", "pruning_ratio", "parameters", "heads", "scope", "drop_layers", "channels_multiple",
    "method", "pruner_type", "taylor", "block_wise", "layer_wise", "layer", "global_pruning", "iterative_steps",
    "block_attention_layer_start", "block_attention_layer_end", "block_mlp_layer_start", "block_mlp_layer_end",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """One run of the command. ask: None where ``plan_file`` says it all. out: "" where nothing is written.

    before, after: texts (``smoke``, a file, each with ``@windows-N``) for the perplexity of the parent and of OUT.
    """

    base: str
    out: str
    ask: Ask | None = None
    plan_file: str | None = None
    calibration: str = "smoke"
    n_examples: int = 10
    seq_len: int = 128
    seed: int = 42
    reconstruct: bool = False
    dry_run: bool = False
    save_plan: str | None = None
    like: bool = False
    dtype: str | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    device: str = "cpu"
    eval_device: str = "cpu"
    force: bool = False


def order_of(base: str, out: str, given: Mapping[str, Any]) -> Order:
    """The order that the options ``given`` make.

    Raises:
        UsageError: they contradict each other.
    """
    plan_file = given.get("plan")
    if plan_file is not None:
        said = [key for key in _OF_SCORING if key in given]
        if said:
            name = f"--{said[0].replace('_', '-')}"
            raise UsageError(f"--plan FILE says what to cut, and {name} was given too: leave one out")
    if given.get("dry_run"):
        for key in ("reconstruct", "like", "force"):
            if given.get(key):
                raise UsageError(f"--dry-run writes nothing, so --{key} makes no sense: leave one out")
    device = given.get("device", "cpu")
    tests = _tests(given)
    both = "ppl" in given
    return Order(
        base,
        out,
        None if plan_file is not None else ask_of(given),
        plan_file,
        given.get("calibration", "smoke"),
        given.get("num_examples", 10),
        given.get("seq_len", 128),
        given.get("seed", 42),
        bool(given.get("reconstruct")),
        bool(given.get("dry_run")),
        given.get("save_plan"),
        given.get("like") is not None,
        given.get("dtype"),
        tests if both or given.get("test_before_train") else (),
        tests if both or given.get("test_after_train") else (),
        device,
        given.get("eval_device", device),
        bool(given.get("force")),
    )


def _tests(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the perplexity tests, each with the window that ``--max_seq_len`` asks for."""
    texts, window = given.get("ppl", ("smoke",)), given.get("max_seq_len")
    if window is None:
        return tuple(texts)
    return tuple(text if re.search(r"@windows-\d+$", text) else f"{text}@windows-{window}" for text in texts)
