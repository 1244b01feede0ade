"""The base run beside a child: what it measures on the same windows, what it thinks of the child's texts, and where
the child's perplexity comes from. The base is rebuilt once, and gone afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gqacheck.errors import GqacheckError, UsageError, reason_of
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Counterfactual, Generation, Induction, Perplexity, RuntimeFacts
from gqacheck.rules.perplexity import worse_than_guessing
from gqacheck.runtime.base_health import MEND, bos_words, broken, errors_of, needs_bos, refusal
from gqacheck.runtime.counterfactual import explain as explain_perplexities
from gqacheck.runtime.left import Left, judged_alone
from gqacheck.runtime.running import (
    Request,
    Running,
    borrowed,
    check_device,
    choose_dtype,
    labelled,
    rebuilt,
    undisturbed,
)

if TYPE_CHECKING:
    from gqacheck.runtime.base_tokenizer import OwnTokenizer
    from gqacheck.runtime.drawing import Drawn
    from gqacheck.runtime.kept import Kept
    from gqacheck.runtime.relative import Beside


NO_CONFIG = "it carries no config: put its config.json beside it, or name the folder that has both"


@dataclass(slots=True)
class _Base:
    """What the base showed, in the order of the child's perplexities."""

    perplexities: list[Perplexity] = field(default_factory=list)
    besides: list[Beside | None] = field(default_factory=list)
    masked: list[Perplexity] = field(default_factory=list)
    generation: Generation | None = None
    reads_less: bool = False
    induction: Induction | None = None
    tokenizer: OwnTokenizer | None = None
    notes: list[str] = field(default_factory=list)


def run_beside(
    child: Subject,
    parent: Subject,
    facts: RuntimeFacts,
    left: Left,
    request: Request,
    *,
    explain: bool,
    pairing_broken: bool,
) -> RuntimeFacts:
    """``facts`` of the child with what its base adds to them, or with the reason why it adds nothing.

    explain: whether it is asked where the child's perplexities come from; the base is then masked and run again.

    Raises:
        UsageError: for options that make no sense.
    """
    if not (left.plans or left.drawn or facts.consistency):
        return facts
    refused = refusal(parent)
    if refused:
        return replace(judged_alone(facts, left), base_problem=refused)
    kept, why = _kept(child, parent, request) if explain and facts.perplexities else (None, "")
    found = _Base(notes=[why] if why else [])
    try:
        found.tokenizer = _own_tokenizer(parent, left)
        if found.tokenizer is not None and found.tokenizer.another and request.tokenizer is None:
            return replace(judged_alone(facts, left), base_problem=found.tokenizer.another)
        _run(child, parent, facts, left, request, kept, found)
    except UsageError:
        raise
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        own = errors_of(parent)
        also = f"; its own check finds {own}" if own else ""
        why = reason_of(error) if parent.checkpoint.config is not None else NO_CONFIG
        sentence = f"the base could not be run beside this file: {why}{also}"
        return replace(judged_alone(facts, left), base_problem=sentence)
    return _together(child, parent, facts, left, found, kept, pairing_broken)


def _own_tokenizer(parent: Subject, left: Left) -> OwnTokenizer | None:
    from gqacheck.runtime.base_tokenizer import own_tokenizer
    from gqacheck.runtime.quiet import quiet_and_offline

    if left.encoder is None:
        return None
    with quiet_and_offline():
        return own_tokenizer(parent.checkpoint, left.encoder)


def _kept(child: Subject, parent: Subject, request: Request) -> tuple[Kept | None, str]:
    """Which parts of the parent the child has, to mask the others; or the note on why that is not known."""
    from gqacheck.runtime.kept import kept_of

    lineage = child.lineage
    if lineage is None or not lineage.compared:
        reason = lineage.reason if lineage is not None and lineage.reason else "the two were not matched"
        return None, f"where the perplexity comes from is not known: {reason}"
    if request.live_base is not None:
        return None, "where the perplexity comes from is not asked: a live base is never masked"
    try:
        return kept_of(lineage, child.geometry, parent.geometry), ""
    except (GqacheckError, RecursionError) as error:
        return None, f"where the perplexity comes from is not known: {reason_of(error)}"


def _run(
    child: Subject,
    parent: Subject,
    facts: RuntimeFacts,
    left: Left,
    request: Request,
    kept: Kept | None,
    found: _Base,
) -> None:
    import torch

    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.quiet import quiet_and_offline

    try:
        with quiet_and_offline(), undisturbed(request.seed), _opened(child, parent, request, left) as running:
            _look(running, facts, left, request, found)
            if kept is not None and not kept.whole and facts.perplexities:
                found.masked = _masked(running, facts, left, request, kept, found)
            elif kept is not None:
                found.masked = list(found.perplexities)
    except (GqacheckError, MemoryError, OSError):
        raise
    except torch.OutOfMemoryError as error:
        raise CannotRun("there is not enough memory for it: lower --batch-size, or use --dtype bfloat16") from error
    except Exception as error:  # a forward pass raises whatever the stack raises
        raise CannotRun(f"its forward pass raises {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def _opened(child: Subject, parent: Subject, request: Request, left: Left) -> Iterator[Running]:
    """The base in the child's dtype, with the tokenizer that the child was read with."""
    if request.live_base is not None:
        with borrowed(request.live_base, left.encoder) as running:
            yield running
        return
    where = check_device(None if request.device_map else request.device)
    dtype = choose_dtype(child.checkpoint, request.dtype, where)
    with rebuilt(
        parent.checkpoint, parent.geometry, request, dtype=dtype, encoder=left.encoder, label="parent: "
    ) as running:
        yield running


def _look(running: Running, facts: RuntimeFacts, left: Left, request: Request, found: _Base) -> None:
    from gqacheck.runtime.bos import with_bos
    from gqacheck.runtime.relative import Beside
    from gqacheck.runtime.scoring import head_of

    own_vocab = int(running.model.get_output_embeddings().weight.shape[0])
    for mine, number in zip(facts.perplexities, range(len(left.plans)), strict=False):
        footprint = left.footprints[number]
        beside = None
        if footprint is not None and footprint.hidden and mine.vocab_size == own_vocab:
            beside = Beside(footprint, head_of(running.model))
        found.besides.append(beside)
        measured = _measure(running, left, number, mine, request, beside, "parent: ")
        found.perplexities.append(with_bos(running, left.corpora[number], left.plans[number], measured))
        if footprint is not None:
            footprint.hidden.clear()
    if facts.consistency is not None:
        from gqacheck.runtime.induction import measure_induction

        found.induction = measure_induction(running.model, seed=request.seed)
    if left.drawn is not None:
        from gqacheck.runtime.generation import draw, judge, score

        assert left.encoder is not None
        under = score(running.model, left.drawn)
        progress = labelled(request.progress, "parent: ")
        own = draw(running.model, left.encoder.tokenizer, seed=request.seed, like=left.drawn, progress=progress)
        found.generation = judge(left.drawn, own, under)
        found.reads_less = _reads_nothing(own) and not _reads_nothing(left.drawn)


def _masked(
    running: Running, facts: RuntimeFacts, left: Left, request: Request, kept: Kept, found: _Base
) -> list[Perplexity]:
    """The base's perplexities without what the child has not; the model is masked in place, and no use after that."""
    from gqacheck.runtime.masked import mask_parent

    try:
        mask_parent(running.model, kept.layers, hidden=kept.hidden)
    except GqacheckError as error:
        found.notes.append(f"the parent could not be masked, so where the perplexity comes from is not known: {error}")
        return []
    measured = zip(facts.perplexities, range(len(left.plans)), strict=False)
    return [_measure(running, left, number, mine, request, None, "masked parent: ") for mine, number in measured]


def _measure(
    running: Running, left: Left, number: int, mine: Perplexity, request: Request, beside: Beside | None, label: str
) -> Perplexity:
    """The base on the windows that the child was run on."""
    from gqacheck.runtime.configure import CannotRun
    from gqacheck.runtime.perplexity import max_positions, measure_perplexity
    from gqacheck.runtime.scoring import Tally

    assert left.encoder is not None
    plan = left.plans[number]
    longest, reads = max(len(window.ids) - 1 for window in plan.windows), max_positions(running.model)
    if longest > reads:
        raise CannotRun(
            f"it reads {reads} positions, and this file was read in windows of {longest + 1}: use windows-{reads}"
        )
    rows, top = int(running.model.get_input_embeddings().weight.shape[0]), max(map(max, (w.ids for w in plan.windows)))
    if top >= rows:
        raise CannotRun(
            f"the text, as this file reads it, has ids up to {top}, and the base's embedding has {rows} rows: measure "
            "a text without the tokens that this file has and the base has not"
        )
    return measure_perplexity(
        running.model,
        left.encoder,
        left.corpora[number],
        tally=Tally(),
        batch_size=request.batch_size,
        plan=plan,
        only=[i for segment in mine.segments for i in segment.window_numbers],
        observe=beside.observe if beside is not None else None,
        progress=labelled(request.progress, label),
    )


def _together(
    child: Subject,
    parent: Subject,
    facts: RuntimeFacts,
    left: Left,
    found: _Base,
    kept: Kept | None,
    pairing_broken: bool,
) -> RuntimeFacts:
    from gqacheck.runtime.relative import relate

    own = found.tokenizer
    problem = broken(parent, found.perplexities, own) or _broken_otherwise(found)
    related, notes = [], [*([own.note] if own is not None and own.note else []), *found.notes]
    for mine, base, beside in zip(facts.perplexities, found.perplexities, found.besides, strict=True):
        if needs_bos(base):
            related.append(mine)
            notes += [] if problem else [bos_words(base, own)]
            continue
        healthy = [segment.name for segment in base.segments if not worse_than_guessing(base, segment)]
        out = [segment.name for segment in base.segments if segment.name not in healthy]
        related.append(replace(mine, relative=relate(mine, base, healthy, out, beside)))
    explained: tuple[Counterfactual, ...] = ()
    if kept is not None and found.masked:
        judged = [number for number, base in enumerate(found.perplexities) if not needs_bos(base)]
        explained, more = explain_perplexities(
            child,
            parent,
            [related[number] for number in judged],
            [found.perplexities[number] for number in judged],
            [found.masked[number] for number in judged],
            kept,
            pairing_broken=pairing_broken,
        )
        notes += more
    consistency = facts.consistency
    if consistency is not None:
        consistency = replace(consistency, base_induction=found.induction)
    return replace(
        facts,
        perplexities=tuple(related),
        bases=tuple(found.perplexities),
        counterfactuals=explained,
        notes=(*facts.notes, *notes),
        generation=judged_alone(facts, left).generation if problem else found.generation,
        consistency=consistency,
        base_problem=problem,
    )


def _reads_nothing(drawn: Drawn) -> bool:
    return bool(drawn.readings) and all(reading.lost for reading in drawn.readings)


def _broken_otherwise(found: _Base) -> str:
    """Why the base says nothing of the child's texts and of its copying, "" when it does."""
    if found.reads_less:
        return (
            "the base itself is broken: it reads known text of no language better than guessing, and this file does, "
            f"so it cannot judge what this file writes: {MEND}"
        )
    if found.induction is not None and not math.isfinite(found.induction.drop):
        return f"the base itself is broken: its logits are NaN or infinite on repeated random tokens: {MEND}"
    return ""
