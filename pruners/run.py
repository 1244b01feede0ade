"""``gqaprune`` from end to end: check the parent, score, plan, cut, refit, write beside the destination, check, move."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError, UsageError
from gqacheck.geometry.facts import Perplexity
from gqacheck.pipeline import Options, check_path
from gqacheck.place import check_destination
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Severity
from gqacheck.text import printable
from pruners.anatomy import CannotPrune, dissect
from pruners.plan import ModelShape, PruningPlan
from pruners.plan_file import read_plan
from pruners.save import LABEL, Progress, Saved, save_pruned, stored_dtype, write_plan
from pruners.strategies import CALIBRATED, Ask, ask_of

_OF_SCORING = (
    "strategy", "ratio", "pruning_ratio", "heads", "scope", "drop_layers", "channels_multiple", "method", "pruner_type",
    "taylor", "block_wise", "layer_wise", "layer", "global_pruning", "iterative_steps", "block_attention_layer_start",
    "block_attention_layer_end", "block_mlp_layer_start", "block_mlp_layer_end",
)  # fmt: skip
_LOG_FOLDER = "prune_log"


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


@dataclass(frozen=True, slots=True)
class PruneReport:
    """Everything that one run did.

    scored: how the plan was found, a clause. notes: in sentences. before, after: perplexities of the parent and of what
    was written. saved: None on a dry run. refitted: what least squares did, a clause. complaint: why OUT was not written
    or should not be used, "" when all is well.
    """

    base: str
    out: str
    plan: PruningPlan
    scored: str
    notes: tuple[str, ...] = ()
    before: tuple[Perplexity, ...] = ()
    after: tuple[Perplexity, ...] = ()
    saved: Saved | None = None
    refitted: str = ""
    complaint: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    plan_saved: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)


def request_of(base: str, out: str, given: Mapping[str, Any]) -> Order:
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


def prune_checkpoint(order: Order, progress: Progress | None = None) -> PruneReport:
    """Cuts the checkpoint ``order.base`` and writes ``order.out``, unless the check of the result finds errors.

    Raises:
        UsageError: the order makes no sense (``out`` exists, a plan for another model, ranges reversed).
        CannotPrune: the parent is broken already, or of a kind that is not cut here.
        GqacheckError: whatever else stopped it; nothing was written.
    """
    from gqacheck.runtime.run import require_run_extra

    started = perf_counter()
    _check_places(order)
    require_run_extra("gqaprune")
    parent = _sound_parent(order.base)
    checkpoint = parent.checkpoint
    assert checkpoint is not None
    if not order.dry_run:
        check_destination(order.out, [_place_of(checkpoint)], label=LABEL)
    plan = None if order.plan_file is None else read_plan(order.plan_file)
    model, tokenizer, notes = _load(order)
    before = _perplexities(order.base, order.before, order, None, notes, progress)
    batches, fingerprint = _calibrate(order, tokenizer)
    if plan is not None:
        plan.require_fit(dissect(model).shape)
        found = _Found(plan, f"as {printable(order.plan_file, 80)} says", model, ())
    else:
        found = _plan(order, model, batches, progress)
    notes += found.notes
    made = _made(order, fingerprint)
    report = PruneReport(
        order.base, order.out, found.plan, found.scored + _text_words(order, fingerprint), before=before, asked=made
    )
    if order.save_plan is not None:
        write_plan(order.save_plan, found.plan, made)
        report = replace(report, plan_saved=order.save_plan)
    if not order.dry_run:
        report = _carry_out(order, report, found, model, batches, checkpoint, notes, progress)
    return replace(report, notes=(*dict.fromkeys(notes),), seconds=perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, how it was found, and a model that it was carried out on already where steps did (else the parent)."""

    plan: PruningPlan
    scored: str
    model: Any
    notes: tuple[str, ...]
    done: bool = False


def _check_places(order: Order) -> None:
    """Nothing, when what is named can be written; before anything is read, since weights may take minutes."""
    if order.save_plan is not None and os.path.lexists(order.save_plan):
        raise UsageError(f"--save-plan {printable(order.save_plan)} exists already and is never overwritten")
    if order.dry_run:
        return
    if os.path.dirname(order.out) == _LOG_FOLDER:
        os.makedirs(_LOG_FOLDER, exist_ok=True)  # as LLM-Pruner does
    check_destination(order.out, [order.base] if os.path.exists(order.base) else [], label=LABEL)


def _place_of(checkpoint: Checkpoint) -> str:
    return checkpoint.root if os.path.isdir(checkpoint.path) else checkpoint.path


def _sound_parent(base: str) -> CheckpointReport:
    """The static check of the parent.

    Raises:
        CannotPrune: it cannot be read, or it is broken already.
    """
    report = check_path(base, Options())
    if report.error is not None or report.checkpoint is None:
        raise CannotPrune(report.error or f"{printable(base)} cannot be read")
    errors = [finding for finding in report.findings if finding.severity is Severity.ERROR]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CannotPrune(
            f"{printable(base)} is broken already: {errors[0].code} {printable(errors[0].message, 300)}{more}; mend it "
            f"first (gqacheck {printable(base)} tells all)"
        )
    if report.checkpoint.quantization is not None:
        raise CannotPrune(
            f"{printable(base)} is quantised ({report.checkpoint.quantization}): prune the model it was made of"
        )
    return report


def _load(order: Order) -> tuple[Any, Any, list[str]]:
    from gqacheck.runtime.load import load_model

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model, tokenizer = load_model(order.base, device=order.device)
    said = [str(each.message) for each in heard if str(each.message).startswith("load_model: ")]
    return model.eval(), tokenizer, [text.removeprefix("load_model: ") for text in said]


def _calibrate(order: Order, tokenizer: Any) -> tuple[torch.Tensor | None, str]:
    """Token ids [N, T] where something reads text, and the SHA-256 of the text."""
    ask = order.ask
    reads = ask is not None and (
        (ask.widths and ask.method in CALIBRATED) or ask.sensitivity or (type(ask.drop_layers) is int and ask.drop_layers)
    )
    if not reads and not (order.reconstruct and not order.dry_run):
        return None, ""
    from pruners.calibration import calibration_batches, calibration_text

    if tokenizer is None:
        raise CannotPrune(
            f"{printable(order.base)} has no tokenizer to read the calibration text with: --method l2 needs none"
        )
    text = calibration_text(order.calibration)
    batches = calibration_batches(
        tokenizer, text, n_examples=order.n_examples, seq_len=order.seq_len, seed=order.seed
    )
    return batches, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _text_words(order: Order, fingerprint: str) -> str:
    if not fingerprint:
        return ""
    name = printable(os.path.basename(order.calibration) or order.calibration, 60)
    return f", {order.n_examples} × {order.seq_len} tokens of {name} (sha256 {fingerprint[:12]}), seed {order.seed}"


def _plan(order: Order, model: Any, batches: torch.Tensor | None, progress: Progress | None) -> _Found:
    """The plan that is asked for; cut in steps, each on a model scored anew."""
    ask = order.ask
    assert ask is not None
    shape = dissect(model).shape
    ranges = ask.ranges(shape.n_layers)
    if isinstance(ask.ratio, tuple) and len(ask.ratio) != shape.n_layers:
        raise UsageError(f"--ratio has {len(ask.ratio)} shares and the model has {shape.n_layers} layers")
    drop = _layers_to_drop(ask, shape, model, batches)
    if not ask.widths:
        kept = PruningPlan.of(shape, dict.fromkeys(drop))
        return _Found(kept, "whole layers", model, ())
    notes: list[str] = []
    ratios = _ratios(ask, model, batches, shape, ranges)
    working = copy.deepcopy(model) if ask.steps > 1 else model
    plan = PruningPlan.of(shape, {})
    for step in range(ask.steps):
        importance = _score(ask, working, batches, order.seed)
        request = _request(ask, _step_share(ratios, step, ask.steps), ranges, drop if step == ask.steps - 1 else ())
        selected = _select(plan.child, importance, request)
        notes += selected.notes
        plan = plan.then(selected.plan)
        if progress is not None:
            progress("score and choose", step + 1, ask.steps)
        if ask.steps > 1:
            from pruners.surgery import prune

            working = prune(working, selected.plan)
    return _Found(plan, _scored_words(ask), working, tuple(notes), ask.steps > 1)


def _scored_words(ask: Ask) -> str:
    steps = f" in {ask.steps} steps" if ask.steps > 1 else ""
    return f"by {ask.method_name}{steps}"


def _layers_to_drop(ask: Ask, shape: ModelShape, model: Any, batches: torch.Tensor | None) -> tuple[int, ...]:
    """The layers that go."""
    if ask.keep_first is not None:
        return tuple(range(min(ask.keep_first, shape.n_layers), shape.n_layers))
    if isinstance(ask.drop_layers, tuple):
        beyond = [layer for layer in ask.drop_layers if layer >= shape.n_layers]
        if beyond:
            raise UsageError(f"--drop-layers names layer {beyond[0]} and the model has layers 0-{shape.n_layers - 1}")
        return ask.drop_layers
    if ask.drop_layers >= shape.n_layers:
        raise UsageError(f"--drop-layers {ask.drop_layers} would drop all of {shape.n_layers} layers: keep at least one")
    if not ask.drop_layers:
        return ()
    from pruners.importance import block_influence

    assert batches is not None
    order = block_influence(model, batches).argsort(stable=True).tolist()
    return tuple(sorted(order[: ask.drop_layers]))
