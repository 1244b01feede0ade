"""Where a perplexity comes from: the parent, the parent with the child's missing parts masked, and the child.

Pruning costs what masking the same heads and channels in the parent costs. What the child pays beyond that was done to
it by something else: query heads beside KV heads that are not theirs, or shapes, attributes or a loader that make
another model of it. So three numbers on the same windows tell the three kinds of damage apart (``verdict``).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import Lineage
from gqacheck.geometry.outcomes import Counterfactual, Perplexity
from gqacheck.rules.runtime import perplexity_text
from gqacheck.runtime.verdict import Runs, all_exact, judge, line_up, remarks, tokens_of, undecided, value_of
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus
    from gqacheck.runtime.kept import Kept

CHANGED = "not every weight is the parent's bit by bit, and what was trained or rewritten may be the reason"
Progress = Callable[[str, int, int], None]


def explain_perplexity(
    child: Subject,
    parent: Subject,
    lineage: Lineage,
    child_perplexities: Sequence[Perplexity],
    *,
    corpora: Sequence[str],
    pairing_broken: bool,
    tokenizer: str | None = None,
    device: str | None = "cpu",
    dtype: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[Counterfactual, ...], tuple[str, ...]]:
    """Where each of the child's perplexities comes from, and a note on each that could not be explained.

    child_perplexities: as ``run_model`` measured them on ``corpora`` with the same options; the child's model is gone
    by now. pairing_broken: whether lineage gave errors on the pairing (GQA601 to 605, 608); misread query heads count
    even where their rule was ignored. The parent is rebuilt once, in the dtype that was chosen for the child, measured,
    masked in place and measured again on the same windows.

    Raises:
        UsageError: for options that make no sense. A parent that cannot be run is a note.
    """
    if not child_perplexities:
        return (), ()
    if not lineage.compared:
        return (), (f"the parent was not run beside this file: {lineage.reason or 'the two were not matched'}",)
    try:
        return _explain(
            child,
            parent,
            lineage,
            child_perplexities,
            _Options(corpora, tokenizer, device, dtype, batch_size, limit, seed, progress),
            pairing_broken or any(layer.misread() for layer in lineage.layers),
        )
    except UsageError:
        raise
    except (GqacheckError, OSError, MemoryError, RecursionError) as error:
        return (), (f"the parent could not be run beside this file: {_reason(error)}",)


@dataclass(frozen=True, slots=True)
class _Options:
    corpora: Sequence[str]
    tokenizer: str | None
    device: str | None
    dtype: str | None
    batch_size: int | None
    limit: int | None
    seed: int
    progress: Progress | None


def _explain(
    child: Subject,
    parent: Subject,
    lineage: Lineage,
    measured: Sequence[Perplexity],
    options: _Options,
    pairing_broken: bool,
) -> tuple[tuple[Counterfactual, ...], tuple[str, ...]]:
    from gqacheck.runtime.kept import kept_of

    kept = kept_of(lineage, child.geometry, parent.geometry)
    exact = all_exact(lineage)
    texts = [_same_text(name, mine) for name, mine in zip(options.corpora, measured, strict=False)]
    base, masked = _run_parent(child, parent, kept, texts, options)
    found: list[Counterfactual] = []
    notes: list[str] = []
    for mine, first, second in zip(measured, base, masked, strict=False):
        if not _comparable(mine, first) or not _comparable(mine, second):
            notes.append(
                f"{printable(mine.corpus, 80)}: the parent reads {first.tokens} tokens in {first.windows} windows and "
                f"this file {mine.tokens} in {mine.windows}, so their perplexities are not compared"
            )
            continue
        told = _one(line_up(parent, first, second, mine, exact=exact), kept, pairing_broken)
        if isinstance(told, str):
            notes.append(f"{printable(mine.corpus, 80)}: {told}")
        else:
            found.append(told)
    return tuple(found), tuple(notes)


def _one(runs: Runs, kept: Kept, pairing_broken: bool) -> Counterfactual | str:
    """What is said of one corpus: a verdict with its numbers, or why there is none."""
    verdict = judge(runs, pairing_broken=pairing_broken)
    if verdict is None:
        return undecided(runs)
    base, masked, mine = (value_of(run) for run in (runs.base, runs.masked, runs.child))
    if verdict == "loader" and (kept.lacking or not runs.exact):
        numbers = f"{perplexity_text(base)} base, {perplexity_text(masked)} with what could be masked"
        reasons = kept.notes if kept.lacking else (CHANGED,)
        return f"{numbers}, {perplexity_text(mine)} this file; no verdict, for {'; '.join(reasons)}"
    return Counterfactual(
        corpus=runs.child.corpus,
        protocol=runs.child.protocol,
        base=base,
        masked=masked,
        child=mine,
        tokens=tokens_of(runs.child),
        windows=sum(len(segment.window_nlls) for segment in runs.child.segments),
        verdict=verdict,
        partial=kept.lacking,
        note="; ".join((*remarks(runs, verdict, pairing_broken=pairing_broken), *kept.notes)),
    )


def _comparable(mine: Perplexity, other: Perplexity) -> bool:
    same = (mine.fingerprint, mine.protocol, mine.tokens, mine.windows, mine.complete)
    return same == (other.fingerprint, other.protocol, other.tokens, other.windows, other.complete)


def _same_text(name: str, mine: Perplexity) -> Corpus:
    """The corpus that the child was measured on, cut into windows as long as the child's were."""
    from gqacheck.errors import ReadError
    from gqacheck.runtime.corpus import load_corpus

    corpus = load_corpus(name)
    if corpus.fingerprint != mine.fingerprint:
        raise ReadError(f"{name} has changed since this file was measured on it")
    stated = re.match(r"windows-(\d+)", mine.protocol)
    return replace(corpus, window=int(stated[1])) if stated else corpus


def _run_parent(
    child: Subject, parent: Subject, kept: Kept, texts: Sequence[Corpus], options: _Options
) -> tuple[list[Perplexity], list[Perplexity]]:
    """The parent's perplexities, and those of the masked parent. The model is gone when this returns."""
    import torch

    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.masked import mask_parent
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.run import check_device, choose_dtype

    where = check_device(options.device)
    wanted = choose_dtype(child.checkpoint, options.dtype, where)
    _free(where)
    try:
        with quiet_and_offline(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            encoder = _encoder(child, parent, options.tokenizer)
            loading = _labelled(options.progress, "parent: ")
            model = rebuild(parent.checkpoint, parent.geometry, dtype=wanted, device=where, progress=loading).model
            base = [_measure(model, encoder, text, options, "parent: ") for text in texts]
            if kept.whole:
                return base, base
            mask_parent(model, kept.layers, hidden=kept.hidden)
            return base, [_measure(model, encoder, text, options, "masked parent: ") for text in texts]
    except (GqacheckError, MemoryError, OSError):
        raise
    except torch.OutOfMemoryError as error:
        raise CannotRun(f"{where} has not enough memory: try --batch-size 1 or --device cpu") from error
    except Exception as error:  # a forward pass raises whatever the stack raises
        raise CannotRun(f"its forward pass raises {type(error).__name__}: {one_line(error)}") from error
    finally:
        _free(where)


def _encoder(child: Subject, parent: Subject, given: str | None) -> Any:
    from gqacheck.runtime.tokenizer import MissingTokenizer, make_encoder, open_tokenizer

    try:
        return make_encoder(open_tokenizer(child.checkpoint, given))
    except MissingTokenizer:
        if given is not None:
            raise
        return make_encoder(open_tokenizer(parent.checkpoint))


def _measure(model: Any, encoder: Any, text: Corpus, options: _Options, label: str) -> Perplexity:
    from gqacheck.runtime.perplexity import Tally, measure_perplexity

    return measure_perplexity(
        model,
        encoder,
        text,
        tally=Tally(),
        batch_size=options.batch_size,
        limit=options.limit,
        progress=_labelled(options.progress, label),
    )


def _labelled(progress: Progress | None, label: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(label + what, done, total)


def _free(device: str) -> None:
    """Gives back what a model held before the next one is made."""
    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than this machine has"
    if isinstance(error, RecursionError):
        return "it is nested too deeply to be read"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return str(error) or type(error).__name__
