"""Lines and blocks told bit by bit: which parent line has the same sampled bytes, and which head its lines make up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from gqacheck.geometry.origins import Origin

MOST_EQUAL = 16
"""Parent lines with the same sample beyond which a sample says nothing (rows of zeros after masking)."""
LEAST_TELLING = 5
"""Different values a sample must hold, zero left out, to tell a line: rows of a sparse or ternary matrix look alike."""
BLANK: tuple[int, ...] = (-1,)
"""The candidates of a line that cannot be told by its sample: of too few values, or of too many lines."""
ZERO: tuple[int, ...] = (-2,)
"""The candidates of a line of zeros: it was masked, and may be any."""

Candidates = tuple[int, ...]


def index_lines(samples: Sequence[bytes]) -> dict[bytes, Candidates]:
    """Sample -> the parent's lines that have it; ``BLANK`` where these are too many to tell anything."""
    found: dict[bytes, list[int]] = {}
    for number, sample in enumerate(samples):
        found.setdefault(sample, []).append(number)
    return {sample: tuple(lines) if len(lines) <= MOST_EQUAL else BLANK for sample, lines in found.items()}


def find_lines(samples: Sequence[bytes], index: Mapping[bytes, Candidates], size: int) -> list[Candidates]:
    """For each of the child's lines the parent's lines that it may be, () when there is none.

    size: bytes per element. A line whose sample holds too few different values is ``BLANK``: it is sparse, and other
    lines of the parent look like it by chance.
    """
    least = min(LEAST_TELLING, max(1, len(samples[0]) // size // 2)) if samples else 1
    return [index.get(sample, ()) if _tells(sample, size, least) else _blank(sample) for sample in samples]


def _tells(sample: bytes, size: int, least: int) -> bool:
    values = {sample[at : at + size] for at in range(0, len(sample), size)}
    return len(values) - (bytes(size) in values) >= least


def _blank(sample: bytes) -> Candidates:
    return BLANK if any(sample) else ZERO


def tells(line: Candidates) -> bool:
    """Whether a line's sample says something, if only that it is none of the parent's."""
    return line not in (BLANK, ZERO)


def share_found(lines: Sequence[Candidates]) -> float:
    """Share of the lines that have a candidate; blank lines do not count on either side. 0 when all are blank."""
    telling = [line for line in lines if tells(line)]
    return sum(bool(line) for line in telling) / len(telling) if telling else 0.0


def find_blocks(lines: Sequence[Candidates], width: int) -> list[Origin]:
    """The origin of each block of ``width`` child lines, from the candidates of its lines.

    A block is ``exact`` when one parent head explains every line that has a candidate, and these are seven in eight of
    its lines; ``mixed`` when no single head does; ``unmatched`` otherwise. Lines that tell nothing do not count.
    """
    return [find_block(lines[start : start + width], width) for start in range(0, len(lines), width)]


def find_block(lines: Sequence[Candidates], width: int) -> Origin:
    """The origin of one block; ``lines`` are the candidates of its lines in the child's order."""
    telling = [line for line in lines if line and tells(line)]
    if not telling or 8 * len(telling) < 7 * sum(map(tells, lines)):
        return Origin("unmatched")
    votes: Counter[int] = Counter()
    for line in telling:
        votes.update({candidate // width for candidate in line})
    most = max(votes.values())
    if most < len(telling):
        heads = _explaining(telling, width, votes)
        return Origin("mixed", heads) if len(heads) > 1 else Origin("exact", heads)
    heads = tuple(sorted(head for head, count in votes.items() if count == most))
    return Origin("exact", heads, order=order_in(lines, heads[0], width))


def _explaining(lines: Sequence[Candidates], width: int, votes: Mapping[int, int]) -> tuple[int, ...]:
    """Parent heads that between them explain the lines, those of most lines first."""
    left = list(lines)
    heads: list[int] = []
    for head in sorted(votes, key=lambda head: (-votes[head], head)):
        rest = [line for line in left if head not in {candidate // width for candidate in line}]
        if len(rest) < len(left):
            heads.append(head)
            left = rest
    return tuple(heads)


def order_in(lines: Sequence[Candidates], head: int, width: int) -> tuple[int, ...] | None:
    """For each line its place in the parent's ``head``; None when they stand as in the parent.

    A line that says nothing is taken to stand where it should.
    """
    order: list[int] = []
    for place, line in enumerate(lines):
        inside = [candidate % width for candidate in line if candidate >= 0 and candidate // width == head]
        order.append(place if place in inside or not inside else inside[0])
    return None if order == list(range(len(lines))) else tuple(order)
