"""What three perplexities of one text say about a child: the parent's, the masked parent's and its own.

Judged on log-perplexities (nats per token), because perplexities are products of what each damage costs. Every number
that a judgement rests on stands here, with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from gqacheck.geometry.facts import Subject
from gqacheck.geometry.origins import NOWHERE, Channels, Heads, Lineage
from gqacheck.geometry.outcomes import Perplexity
from gqacheck.rules.perplexity import perplexity_of, worse_than_guessing
from gqacheck.text import printable_list

Verdict: TypeAlias = Literal["pairing", "over-pruned", "loader", "base-broken", "fine"]

ALIKE = math.log(1.1)
"""Nats by which a correctly paired child may miss the masked parent: rounding to half precision, rewritten o_proj and
light fine-tuning move a perplexity by a few per cent. With a pairing known to be broken, more than this is its cost."""

HURT = math.log(1.5)
"""Nats from which a model counts as hurt, the first line of the base-relative judgement. A paired child whose weights
are not all the parent's bit by bit must miss the masked parent by this much before it counts as unexplained: one that
was trained further on other text may well be a quarter worse on this one."""

SHARE = 0.5
"""The rest of the damage is named when it is at least this share of the whole: putting it right then helps most."""

CHANCE = 3.0
"""Standard errors of the mean difference between child and masked parent, window by window, that chance may make."""

TOKEN_SPREAD = 2.3
"""Standard deviation (nats) of one token's loss in a language model: bounds the error where windows are too few."""

MIN_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Runs:
    """The three perplexities of one corpus, on the segments where the parent is better than guessing.

    base_broken: there is no such segment. masked_broken: the masked parent is worse than guessing on all of them.
    left_out: the other segments. exact: lineage found every weight of the child bit by bit in the parent.
    """

    base: Perplexity
    masked: Perplexity
    child: Perplexity
    base_broken: bool = False
    masked_broken: bool = False
    left_out: tuple[str, ...] = ()
    exact: bool = False


def judge(runs: Runs, *, pairing_broken: bool) -> Verdict | None:
    """What the three perplexities say; None when they say nothing (a NaN, or a difference that chance makes, too).

    With b, m, c the log-perplexities of parent, masked parent and child: the damage is c - b, of which m - b is the
    pruning's and the rest, c - m, is not.
    """
    b, m, c = (nll(run) for run in (runs.base, runs.masked, runs.child))
    if any(map(math.isnan, (b, m, c))):
        return None
    if runs.base_broken or math.isinf(b):
        return "base-broken"
    damage, rest = c - b, c - m
    if runs.masked_broken and m - b > HURT:
        return "over-pruned"
    mostly_rest = rest >= SHARE * damage
    if mostly_rest and rest > (ALIKE if pairing_broken or runs.exact else HURT):
        if rest <= CHANCE * _chance(runs):
            return None
        return "pairing" if pairing_broken else "loader"
    return "fine" if mostly_rest or damage <= HURT else "over-pruned"


def line_up(parent: Subject, base: Perplexity, masked: Perplexity, child: Perplexity, *, exact: bool) -> Runs:
    """The three of one corpus, with segments left out on which the parent shows nothing (its language is another)."""
    healthy = [number for number, segment in enumerate(base.segments) if not worse_than_guessing(base, segment)]
    if not healthy:
        return Runs(base, masked, child, base_broken=True, exact=exact)
    left_out = tuple(segment.name for number, segment in enumerate(base.segments) if number not in healthy)
    base, masked, child = (
        replace(run, segments=tuple(run.segments[number] for number in healthy)) for run in (base, masked, child)
    )
    return Runs(base, masked, child, False, worse_than_guessing(masked), left_out, exact)


def all_exact(lineage: Lineage) -> bool:
    """Whether every projection was found bit by bit, so that nothing was trained or rewritten since the cut."""
    for layer in lineage.layers:
        heads = (layer.q, layer.k, layer.v, layer.o)
        channels = [part for mlp in layer.mlps for part in (mlp.gate, mlp.up, mlp.down) if part is not None]
        if layer.parent is None or any(part is None for part in heads) or layer.not_compared:
            return False
        if any(part is None or part.state != "exact" or _unmatched(part) for part in (*heads, *channels)):
            return False
        if any(vector.state != "exact" for vector in layer.vectors):
            return False
    return bool(lineage.layers)


def _unmatched(part: Heads | Channels) -> bool:
    if isinstance(part, Heads):
        return any(origin.how != "exact" for origin in part.origins)
    return NOWHERE in part.parents


def value_of(perplexity: Perplexity) -> float:
    """The perplexity of the segments that are left in it."""
    return perplexity_of(nll(perplexity))


def nll(perplexity: Perplexity) -> float:
    """Nats per token over all segments; the value itself may have overflowed."""
    total = tokens_of(perplexity)
    if not total:
        return math.log(perplexity.value) if perplexity.value > 0 else math.nan
    return math.fsum(segment.nll * segment.tokens for segment in perplexity.segments) / total


def tokens_of(perplexity: Perplexity) -> int:
    """Tokens scored in the segments that are left in it."""
    return sum(segment.tokens for segment in perplexity.segments)


def _chance(runs: Runs) -> float:
    """Standard error (nats) of the child's mean loss minus the masked parent's, over windows of the same text."""
    pairs = [
        (ours, theirs)
        for mine, other in zip(runs.child.segments, runs.masked.segments, strict=False)
        for ours, theirs in zip(mine.window_nlls, other.window_nlls, strict=False)
    ]
    if len(pairs) < MIN_WINDOWS:
        return TOKEN_SPREAD / math.sqrt(max(1, tokens_of(runs.child)))
    differences = [ours - theirs for ours, theirs in pairs]
    if not all(map(math.isfinite, differences)):
        return 0.0
    mean = math.fsum(differences) / len(differences)
    spread = math.fsum((difference - mean) ** 2 for difference in differences)
    return math.sqrt(spread / (len(differences) - 1) / len(differences))


def undecided(runs: Runs) -> str:
    """Why there is no verdict."""
    if math.isnan(nll(runs.child)):
        return "this file's perplexity is not a number, so there is nothing to explain"
    for whose, measured in (("parent", runs.base), ("masked parent", runs.masked)):
        if math.isnan(nll(measured)):
            return f"the {whose}'s perplexity is not a number: repeat it with --dtype float32"
    return f"{tokens_of(runs.child)} tokens are too few to tell the pruning's part from chance: give a longer text"


def remarks(runs: Runs, verdict: Verdict, *, pairing_broken: bool) -> list[str]:
    """What the reader should know beside the verdict."""
    said = []
    if pairing_broken and verdict in ("over-pruned", "fine"):
        costs = "besides" if verdict == "over-pruned" else "all the same, and costs little on this text"
        said.append(f"the pairing is broken {costs}")
    if runs.left_out:
        judged = printable_list((segment.name for segment in runs.base.segments), limit=40)
        others = printable_list(runs.left_out, limit=40)
        said.append(f"on {judged} alone: on {others} the parent itself is worse than guessing")
    if runs.base.vocab_size != runs.child.vocab_size:
        said.append(f"the parent predicts {runs.base.vocab_size} tokens, this file {runs.child.vocab_size}")
    return said
