"""Where a perplexity comes from: the parent, the parent with the child's missing parts masked, and the child.

Pruning costs what masking the same heads and channels in the parent costs. What the child pays beyond that was done to
it by something else: query heads beside KV heads that are not theirs, or shapes, attributes or a loader that make
another model of it. So three numbers on the same windows tell the three kinds of damage apart (``verdict``);
``beside`` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.outcomes import Counterfactual, Perplexity
from gqacheck.rules.perplexity import perplexity_text
from gqacheck.runtime.verdict import Runs, all_exact, judge, line_up, remarks, tokens_of, undecided, value_of
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.runtime.kept import Kept

CHANGED = "not every weight is the parent's bit by bit, and what was trained or rewritten may be the reason"


def explain(
    child: Subject,
    parent: Subject,
    measured: Sequence[Perplexity],
    base: Sequence[Perplexity],
    masked: Sequence[Perplexity],
    kept: Kept,
    *,
    pairing_broken: bool,
) -> tuple[tuple[Counterfactual, ...], tuple[str, ...]]:
    """Where each of the child's perplexities comes from, and a note on each that could not be explained.

    measured, base, masked: the child's, the parent's and the masked parent's, corpus by corpus on the same windows.
    pairing_broken: whether lineage gave errors on the pairing (GQA601 to 605, 608); misread query heads count even
    where their rule was ignored.
    """
    assert child.lineage is not None
    pairing_broken = pairing_broken or any(layer.misread() for layer in child.lineage.layers)
    exact = all_exact(child.lineage)
    found: list[Counterfactual] = []
    notes: list[str] = []
    for mine, first, second in zip(measured, base, masked, strict=True):
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
