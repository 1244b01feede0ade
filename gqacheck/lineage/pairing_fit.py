"""Tells from the weights alone whether query heads still read the v head that they were trained with.

A query head's o_proj columns and the v head it reads are written in one basis, that of the head's ``D`` channels:
nothing but training ties them to each other. Gradients reach v only through o_proj and o_proj only through v, so
training gives both the same correlations between channels, and a head that is attached to another v head shows the
correlations of the one it was trained with. No parent is needed, only the layer's other v heads. What was measured, and
what this does not see, is in docs/pairing-without-a-parent.md.

Shapes: ``D`` channels of a head, ``E`` hidden size, ``Hq`` query heads, ``Hkv`` KV heads of one layer,
``P = D * (D - 1) / 2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gqacheck.geometry.origins import FitVerdict, PairingFit, Stray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.floating[Any]]

CHANCE: Final = 0.05
"""Chance votes expected in the whole model if fits were normal; with heavier tails ``SCRAMBLES`` decides."""
MARGIN: Final = 2.0
"""Spreads by which another v head must fit better than the one that is read."""
NEEDED: Final = 2
"""Different v heads that must be pointed at before anything is said."""
VISIBLE: Final = 0.9
"""Share of the heads that must point at the v head they read before it may be said that there is no sign."""
SCRAMBLES: Final = 299
"""Random bases the v heads are put into; one that points at as many v heads as the file acquits."""
BATCH_NUMBERS: Final = 1 << 20
"""Correlations that are scrambled at once: 4 MB in single precision, and a few such arrays."""


@dataclass(frozen=True, slots=True)
class LayerBasis:
    """The channel correlations of one layer: ``values`` [Hkv, P] and ``outputs`` [Hq, P], each row of length 1 or 0.

    ``reads`` has for every query head the KV head that it reads by position.
    """

    layer: int
    values: Numbers
    outputs: Numbers
    reads: tuple[int, ...]


def gram(blocks: Iterable[Numbers]) -> Numbers:
    """Return [n, D, D] in float32: of each head's D lines the inner products, summed over ``blocks`` [n, D, elements].

    Raises:
        ValueError: there is no block.
    """
    import numpy as np

    total: Numbers | None = None
    with np.errstate(all="ignore"):  # NaN and Inf are sorted out by `channel_correlations`
        for heads in blocks:
            part = heads.astype(np.float32) @ heads.astype(np.float32).transpose(0, 2, 1)
            total = part if total is None else total + part
    if total is None:
        raise ValueError("there is no block to take inner products of")
    return total


def channel_correlations(grams: Numbers) -> Numbers:
    """Return [n, P]: of each Gram matrix [D, D] the correlations above the diagonal, scaled to length 1.

    Correlations do not change when a channel is scaled, so folding scales between v and o_proj, as quantisers do, is
    not seen; neither is the scale of the head. A head with a dead channel has zeros there, one with a NaN or Inf or
    without any correlation is all zeros and takes no part.
    """
    import numpy as np

    with np.errstate(all="ignore"):
        length = np.sqrt(np.diagonal(grams, axis1=1, axis2=2).astype(np.float64))
        inverse = np.where(length > 0, 1 / length, 0.0)
        correlations = grams * inverse[:, :, None] * inverse[:, None, :]
        upper = correlations[:, *np.triu_indices(grams.shape[1], 1)]
        size = np.linalg.norm(upper, axis=1, keepdims=True)  # NaN where anything is, and so not above 0
        scaled: Numbers = np.where(size > 0, upper / size, 0.0).astype(np.float32)
    return scaled


def judge_pairing(layers: Sequence[LayerBasis]) -> PairingFit:
    """Return whether the model's query heads fit v heads that they do not read, or that this cannot be told.

    The fit of an o_proj block to a v head is the cosine of their channel correlations, in units of what chance gives:
    the root mean square of the same block's fits to the v heads of *other* layers (and of the v head's fits to their
    blocks, whichever is larger), which training never ties. A head votes only when its best fit is above a level that
    chance reaches ``CHANCE`` times in a model of this size, and votes for another v head only when that fits ``MARGIN``
    better than its own. Votes for ``NEEDED`` different v heads make the model suspect (query heads of one group share
    their basis and err together, v heads do not), unless `points_by_chance` says that chance does as much.
    """
    from statistics import NormalDist

    comparable = [layer for layer in layers if layer.values.shape[0] > 1 and layer.outputs.size]
    if not comparable:
        return PairingFit("not-judged", "no layer has a second KV head that a query head could point at")
    pairs = sum(layer.outputs.shape[0] * layer.values.shape[0] for layer in comparable)
    needed_fit = NormalDist().inv_cdf(1 - CHANCE / pairs)
    spreads = chance_spreads(comparable)
    at_home, strays = 0, []
    for layer, spread in zip(comparable, spreads, strict=True):
        settled, wandering = _votes(layer, layer.outputs @ layer.values.T / spread, needed_fit)
        at_home += settled
        strays += wandering
    judged = sum(len(layer.reads) for layer in comparable)
    pointed_at = len({(stray.layer, stray.found) for stray in strays})
    verdict: FitVerdict = "cannot-tell"
    if pointed_at >= NEEDED and not points_by_chance(comparable, spreads, needed_fit, pointed_at):
        verdict = "suspect"
    elif not strays and at_home >= VISIBLE * judged:
        verdict = "no-sign"
    return PairingFit(
        verdict,
        needed_fit=needed_fit,
        judged=judged,
        at_home=at_home,
        strays=tuple(strays),
        layers=tuple(layer.layer for layer in comparable),
    )


def _votes(layer: LayerBasis, fits: Numbers, needed_fit: float) -> tuple[int, list[Stray]]:
    """How many heads point at the v head they read, and those that point elsewhere."""
    import numpy as np

    best = fits.argmax(axis=1)
    at_home = int(np.sum((best == layer.reads) & (fits.max(axis=1) >= needed_fit)))
    strays = []
    for head in np.flatnonzero(_astray(fits, layer.reads, needed_fit)).tolist():
        reads, found = layer.reads[head], int(best[head])
        strays.append(Stray(layer.layer, head, reads, found, float(fits[head, reads]), float(fits[head, found])))
    return at_home, strays


def points_by_chance(
    layers: Sequence[LayerBasis], spreads: Sequence[Numbers], needed_fit: float, pointed_at: int
) -> bool:
    """Return whether one of ``SCRAMBLES`` random bases for every v head points at ``pointed_at`` v heads or more.

    A scramble renames a v head's channels and flips their signs, which leaves everything about the head as it was but
    its tie to the o_proj blocks. In a model without a tie the file is one more scramble, so it is called suspect with
    a probability of at most 1 in ``SCRAMBLES`` + 1, whatever the shape of its weights. Seeded, so repeatable.
    """
    import numpy as np

    random = np.random.default_rng(0)
    reached = np.zeros(SCRAMBLES, np.int64)
    for layer, spread in zip(layers, spreads, strict=True):
        heads, pairs = layer.values.shape
        batch = max(1, BATCH_NUMBERS // (heads * pairs))
        for start in range(0, SCRAMBLES, batch):
            count = min(batch, SCRAMBLES - start)
            fits = layer.outputs @ _scramble(layer.values, count, random).transpose(0, 2, 1) / spread
            astray, best = _astray(fits, layer.reads, needed_fit), fits.argmax(axis=2)
            for head in range(heads):
                reached[start : start + count] += (astray & (best == head)).any(axis=1)
    return bool((reached >= pointed_at).any())


def chance_spreads(layers: Sequence[LayerBasis]) -> list[Numbers]:
    """Return for each layer [Hq, Hkv]: the root mean square that each fit would have if nothing tied the two heads.

    Never below 1 / sqrt(P), which is what a random basis gives; that alone where no other layer has heads of this size.
    """
    import numpy as np

    results = [
        np.full((layer.outputs.shape[0], layer.values.shape[0]), layer.values.shape[1] ** -0.5) for layer in layers
    ]
    for pairs in {layer.values.shape[1] for layer in layers}:
        alike = [number for number, layer in enumerate(layers) if layer.values.shape[1] == pairs]
        every = np.concatenate([layers[number].values for number in alike])
        ends = np.cumsum([layers[number].values.shape[0] for number in alike]).tolist()
        n_outputs = sum(layers[number].outputs.shape[0] for number in alike)
        by_value = np.zeros(len(every))
        for number, end in zip(alike, ends, strict=True):
            outputs, own = layers[number].outputs, slice(end - layers[number].values.shape[0], end)
            squares = np.square((outputs @ every.T).astype(np.float64))
            squares[:, own] = 0.0
            by_value += squares.sum(axis=0)
            others = len(every) - (own.stop - own.start)
            if others:
                by_output = np.sqrt(squares.sum(axis=1) / others)
                results[number] = np.maximum(results[number], by_output[:, None])
        for number, end in zip(alike, ends, strict=True):
            own, others = slice(end - layers[number].values.shape[0], end), n_outputs - layers[number].outputs.shape[0]
            if others:
                results[number] = np.maximum(results[number], np.sqrt(by_value[own] / others)[None, :])
    return list(results)


def _astray(fits: Numbers, reads: Sequence[int], needed_fit: float) -> NDArray[np.bool_]:
    """Return [..., Hq] for fits [..., Hq, Hkv]: which heads fit enough, and ``MARGIN`` better than what they read."""
    import numpy as np

    best = fits.max(axis=-1)
    read = fits[..., np.arange(len(reads)), list(reads)]
    astray: NDArray[np.bool_] = (best >= needed_fit) & (best - read >= MARGIN)
    return astray


def _scramble(values: Numbers, count: int, random: np.random.Generator) -> Numbers:
    """Return [count, Hkv, P], the correlations after each head's channels were shuffled and their signs drawn anew."""
    import numpy as np

    heads, pairs = values.shape
    head_dim = round((1 + (1 + 8 * pairs) ** 0.5) / 2)
    rows, columns = np.triu_indices(head_dim, 1)
    place = np.zeros((head_dim, head_dim), np.int32)
    place[rows, columns] = place[columns, rows] = np.arange(pairs)
    order = random.random((count, heads, head_dim)).argsort(axis=2)
    signs = np.where(random.random((count, heads, head_dim)) < 0.5, -1.0, 1.0).astype(values.dtype)
    shuffled = np.take_along_axis(values[None], place[order[..., rows], order[..., columns]], axis=2)
    result: Numbers = shuffled * signs[..., rows] * signs[..., columns]
    return result
