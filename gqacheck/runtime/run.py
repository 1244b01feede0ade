"""Rebuild a checkpoint, run it on text, and hand back what happened as plain facts.

The child is run first, then the base in its place: both are rarely in memory together. What the comparison needs of
the child stays behind (``Left``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError, UsageError
from gqacheck.geometry.facts import Geometry, Subject
from gqacheck.geometry.outcomes import Consistency, Perplexity, RuntimeFacts
from gqacheck.runtime.doubts import settled
from gqacheck.runtime.left import Left, judged_alone
from gqacheck.runtime.running import (
    Progress,
    Request,
    Running,
    borrowed,
    check_device,
    choose_dtype,
    rebuilt,
    require_run_extra,
    undisturbed,
)
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus

__all__ = ["Left", "Progress", "Request", "run_check", "run_child", "run_model"]


def run_check(subject: Subject, request: Request, *, pairing_broken: bool = False) -> RuntimeFacts:
    """What happened when the checkpoint ran, and beside its base when the subject has one.

    pairing_broken: whether lineage gave errors on the pairing (GQA601 to 605, 608); it is then said where the
    perplexity comes from.

    Raises:
        UsageError, ReadError, MissingTokenizer, CannotRun, MissingDependency: as ``run_model`` says.
    """
    base = subject.base
    facts, left = run_child(
        subject.checkpoint, subject.geometry, request, beside=base.checkpoint if base is not None else None
    )
    if base is None or facts.failure is not None:
        return settled(subject, judged_alone(facts, left))
    from gqacheck.rules.perplexity import worse_than_guessing
    from gqacheck.runtime.beside import run_beside

    explain = pairing_broken or any(worse_than_guessing(perplexity) for perplexity in facts.perplexities)
    together = run_beside(subject, base, facts, left, request, explain=explain, pairing_broken=pairing_broken)
    return settled(subject, together)


def run_model(
    checkpoint: Checkpoint,
    geometry: Geometry,
    *,
    corpora: Sequence[str] = ("smoke",),
    **options: Any,
) -> RuntimeFacts:
    """What happened when the checkpoint was rebuilt and read ``corpora``: perplexities, or the failure in a sentence.

    corpora: as ``--ppl`` takes them, ``CORPUS[@PROTOCOL]`` each. options: those of ``Request``. dtype: ``float32``,
    ``bfloat16``, ``float16`` or ``auto`` (the file's own); by default the file's own on a GPU and float32 on a CPU,
    where half precision is slow. limit: windows per corpus at most. Every window is read unless ``stop_early``.

    Raises:
        UsageError: an unknown corpus, device or dtype.
        ReadError: a corpus or the weights cannot be read.
        MissingTokenizer: no tokenizer is stored and none was named.
        CannotRun: the file is not at fault, but such a model is not run (packed weights, no stock class, no config).
        MissingDependency: torch or transformers is not installed.
    """
    require_run_extra("--ppl")
    return judged_alone(*run_child(checkpoint, geometry, Request(tuple(corpora), **{"stop_early": False, **options})))


def run_child(
    checkpoint: Checkpoint, geometry: Geometry, request: Request, *, beside: Checkpoint | None = None
) -> tuple[RuntimeFacts, Left]:
    """The facts of one run, and what is kept of the model when its base will be run ``beside`` it.

    A checkpoint without a tokenizer is read with the base's.

    Raises: as ``run_model``.
    """
    require_run_extra("--ppl" if request.corpora else "--generate" if request.generate else "--consistency")
    import torch

    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.quiet import quiet_and_offline

    started = time.perf_counter()
    _refuse_two_places(request)
    where = check_device(None if request.device_map else request.device)
    left = Left(corpora=_load_corpora(request.corpora))
    gathered = _Gathered()
    with quiet_and_offline(), undisturbed(request.seed):
        try:
            with opened(checkpoint, geometry, request, gathered, beside) as running:
                left.encoder = running.encoder
                gathered.notes += running.notes
                gathered.where, gathered.dtype = running.device, running.dtype
                _measure_all(checkpoint, geometry, running, request, left, gathered, beside=beside is not None)
        except CannotRun as error:
            if not error.supported:
                raise
            gathered.failure, gathered.stage = str(error), error.stage
        except (GqacheckError, MemoryError, OSError):
            raise
        except torch.OutOfMemoryError as error:
            raise CannotRun(_out_of_memory(where)) from error
        except Exception as error:  # a forward pass raises whatever the stack raises: that is what is reported
            if "DefaultCPUAllocator: can't allocate memory" in str(error):
                raise CannotRun(_out_of_memory(where)) from error
            gathered.failure = f"{gathered.doing} raises {type(error).__name__}: {one_line(error)}"
            gathered.stage = "forward"
    return gathered.facts(request, time.perf_counter() - started), left


@dataclass(slots=True)
class _Gathered:
    """Facts on the way."""

    doing: str = "the forward pass"
    where: str = "cpu"
    dtype: str = "float32"
    notes: tuple[str, ...] = ()
    perplexities: list[Perplexity] = field(default_factory=list)
    consistency: Consistency | None = None
    logits: int = 0
    non_finite: int = 0
    non_finite_from: int = 0
    failure: str | None = None
    stage: str | None = None

    def facts(self, request: Request, seconds: float) -> RuntimeFacts:
        asked = {"ppl": request.corpora, "generation": request.generate, "consistency": request.consistency}
        return RuntimeFacts(
            perplexities=tuple(self.perplexities),
            failure=self.failure,
            failure_stage=self.stage,
            non_finite=self.non_finite,
            logits_seen=self.logits,
            non_finite_from=self.non_finite_from,
            notes=self.notes,
            device=self.where,
            dtype=self.dtype,
            seconds=seconds,
            problem=_same_digits(self.perplexities) or _too_few(self.perplexities),
            consistency=self.consistency,
            asked=frozenset(name for name, wanted in asked.items() if wanted),
        )


@contextmanager
def opened(
    checkpoint: Checkpoint,
    geometry: Geometry,
    request: Request,
    gathered: _Gathered,
    beside: Checkpoint | None,
) -> Iterator[Running]:
    """The child's model with its tokenizer: the live module of the request, or one rebuilt from the checkpoint."""
    from gqacheck.runtime.skeleton import refuse
    from gqacheck.runtime.tokenizer import MissingTokenizer, make_encoder, open_tokenizer

    if request.live is not None:
        if request.live_tokenizer is None and (request.corpora or request.generate):
            raise UsageError("a live model is run on text with its tokenizer: check_model(model, tokenizer, ...)")
        encoder = None if request.live_tokenizer is None else make_encoder(request.live_tokenizer)
        with borrowed(request.live, encoder) as running:
            yield running
        return
    where = check_device(None if request.device_map else request.device)
    dtype = choose_dtype(checkpoint, request.dtype, where)
    gathered.where, gathered.dtype = where, str(dtype).removeprefix("torch.")
    refuse(checkpoint, geometry)  # before the tokenizer: what cannot be run at all needs none
    encoder = None
    if request.corpora or request.generate:
        try:
            encoder = make_encoder(open_tokenizer(checkpoint, request.tokenizer))
        except MissingTokenizer:
            if request.tokenizer is not None or beside is None or beside.tokenizer is None:
                raise
            encoder = make_encoder(open_tokenizer(beside))
            gathered.notes += ("no tokenizer is stored with this file: it was read with the base's",)
    with rebuilt(checkpoint, geometry, request, dtype=dtype, encoder=encoder) as running:
        yield running


def _measure_all(
    checkpoint: Checkpoint,
    geometry: Geometry,
    running: Running,
    request: Request,
    left: Left,
    gathered: _Gathered,
    *,
    beside: bool,
) -> None:
    from gqacheck.runtime.cache_indices import adopt_cache_indices
    from gqacheck.runtime.consistency import measure_consistency
    from gqacheck.runtime.decode import NotFinite
    from gqacheck.runtime.generation import draw
    from gqacheck.runtime.scoring import Tally

    tally = Tally()
    try:
        for corpus in left.corpora:
            gathered.perplexities.append(_measure_one(running, corpus, request, left, tally, beside=beside))
        if request.consistency:  # also of a model that gave NaN: it may be one attention implementation alone
            gathered.doing = "the consistency check"
            gathered.consistency = measure_consistency(
                running.model,
                ids=_some_ids(running),
                encoder=running.encoder,
                checkpoint=None if request.live is not None else checkpoint,
                geometry=geometry,
                seed=request.seed,
                tally=tally,
                progress=request.progress,
            )
        if request.generate and not tally.non_finite:
            gathered.doing = "generation"
            assert running.encoder is not None
            with adopt_cache_indices(running.model, checkpoint, geometry) as note:
                gathered.notes += (note,) if note else ()
                left.drawn = draw(
                    running.model, running.encoder.tokenizer, seed=request.seed, progress=request.progress
                )
    except NotFinite as error:
        tally.logits += error.logits
        tally.non_finite += error.count
        gathered.non_finite_from = error.token if error.token > 1 else 0
    finally:
        gathered.logits, gathered.non_finite = tally.logits, tally.non_finite


def _measure_one(
    running: Running, corpus: Corpus, request: Request, left: Left, tally: Any, *, beside: bool
) -> Perplexity:
    from gqacheck.runtime.bos import with_bos
    from gqacheck.runtime.perplexity import chosen_windows, measure_perplexity, plan_corpus
    from gqacheck.runtime.relative import Footprint, sample_positions
    from gqacheck.runtime.scoring import head_of

    assert running.encoder is not None
    plan = plan_corpus(running.model, running.encoder, corpus)
    left.plans.append(plan)
    footprint = None
    if beside:
        weight = running.model.get_output_embeddings().weight
        numbers = chosen_windows(plan, request.limit)
        row = weight.shape[-1] * weight.element_size()
        footprint = Footprint(sample_positions(plan, numbers, row), head_of(running.model))
    left.footprints.append(footprint)
    found = measure_perplexity(
        running.model,
        running.encoder,
        corpus,
        tally=tally,
        batch_size=request.batch_size,
        limit=request.limit,
        stop_early=request.stop_early,
        plan=plan,
        observe=footprint.observe if footprint is not None else None,
        progress=request.progress,
    )
    return with_bos(running, corpus, plan, found)


def _some_ids(running: Running) -> list[int] | None:
    """The beginning of the built-in text in ids that the model has rows for; None without a tokenizer."""
    if running.encoder is None:
        return None
    from gqacheck.runtime.corpora.asked import SMOKE
    from gqacheck.runtime.corpus import load_corpus

    text = load_corpus(SMOKE).segments[0].text
    ids = [*running.encoder.prefix, *running.encoder.encode(text[:4000])]
    return ids if max(ids, default=0) < int(running.model.get_input_embeddings().weight.shape[0]) else None


def _load_corpora(asked: Sequence[str]) -> list[Corpus]:
    if not asked:
        return []
    from gqacheck.runtime.corpus import load_corpus

    corpora = [load_corpus(name) for name in asked]
    seen: dict[tuple[str, str], str] = {}
    for corpus in corpora:
        key = (corpus.fingerprint, corpus.protocol.name)
        if key in seen:
            raise UsageError(
                f"corpora {seen[key]} and {corpus.name} are the same text: reading it twice proves nothing"
            )
        seen[key] = corpus.name
    return corpora


def _same_digits(measured: Sequence[Perplexity]) -> str:
    """Why two values cannot both be right, "" when nothing speaks against them.

    A model that says the same of every token has the same perplexity on everything: its vocabulary's size.
    """
    for number, one in enumerate(measured):
        for other in measured[:number]:
            same = one.protocol_name == other.protocol_name and one.value == other.value
            if same and math.isfinite(one.value) and abs(one.value / one.vocab_size - 1) > 1e-6:
                alike = [s.window_nlls for s in one.segments] == [s.window_nlls for s in other.segments]
                said = (
                    "the windows read of them are identical, so the second proves nothing"
                    if alike and one.fingerprint != other.fingerprint
                    else "the same text was read twice, so one of them was not measured"
                )
                return f"corpora {other.corpus} and {one.corpus} gave the same digits ({one.value:.10g}): {said}"
    return ""


def _too_few(measured: Sequence[Perplexity]) -> str:
    """Why a value that is worse than guessing proves nothing, "" when none is in doubt."""
    from gqacheck.rules.perplexity import unsettled

    for one in measured:
        if unsettled(one):
            return (
                f"on {one.windows} of the {one.windows_in_all} windows of {printable(one.corpus, 80)} the model is "
                "worse than guessing, which so few do not settle: read more of them (--limit), or all"
            )
    return ""


def _refuse_two_places(request: Request) -> None:
    if request.device is not None and request.device_map is not None:
        raise UsageError("--device and --device-map both say where the model runs: give one of them")


def _out_of_memory(where: str) -> str:
    if where.startswith("cuda"):
        return f"{where} has not enough memory: try --batch-size 1, --dtype bfloat16, --device-map auto or --device cpu"
    return "the machine has not enough memory: try --batch-size 1 or --dtype bfloat16"
