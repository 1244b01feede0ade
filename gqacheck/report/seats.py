"""The head map as facts: what each KV position of a layer holds and which query heads read it, in the parent's numbers.

The text report and the SVG figure both draw from these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gqacheck.geometry.origins import Heads, LayerOrigin, Lineage, Origin


@dataclass(frozen=True, slots=True)
class Reader:
    """One query head of the child at ``position``.

    head: which parent head it is, None when unmatched or mixed. own: the KV head it was trained with, None likewise.
    wrong: it reads another one; None when that cannot be said. o_head: the parent head that its o_proj columns come
    from when that is another one than ``head``, else None.
    """

    position: int
    head: int | None
    own: int | None
    wrong: bool | None
    o_head: int | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """One KV position: ``kv`` is the parent's KV head in k_proj there, None when unmatched.

    v_head: that of v_proj when it is another one, else None.
    """

    position: int
    kv: int | None
    readers: tuple[Reader, ...]
    v_head: int | None = None

    @property
    def wrong(self) -> int:
        """Readers that were trained with another KV head."""
        return sum(reader.wrong is True for reader in self.readers)

    @property
    def unknown(self) -> int:
        """Readers of which nothing can be said."""
        return sum(reader.wrong is None for reader in self.readers)


def seats(layer: LayerOrigin) -> tuple[Seat, ...]:
    """The KV positions of one layer in order; () when its pairing cannot be told."""
    if not layer.paired or layer.q is None or layer.k is None or not layer.group:
        return ()
    misread = {found.position for found in layer.misread()}
    made = []
    for position, reads in enumerate(layer.k.origins):
        first = position * layer.group
        origins = layer.q.origins[first : first + layer.group]
        owners = {layer.own_kv(head) for origin in origins if origin.head is not None for head in origin.heads}
        kv = _that_fits(reads, owners)
        readers = tuple(_reader(layer, first + n, origin, reads, misread) for n, origin in enumerate(origins))
        made.append(Seat(position, kv, readers, _other(layer.v, position, reads)))
    return tuple(made)


def _reader(layer: LayerOrigin, position: int, origin: Origin, reads: Origin, misread: set[int]) -> Reader:
    if origin.head is None:
        return Reader(position, None, None, None)
    head = next((head for head in origin.heads if layer.own_kv(head) in reads.heads), origin.head)
    wrong = None if reads.head is None else position in misread
    return Reader(position, head, layer.own_kv(head), wrong, _other(layer.o, position, origin))


def _that_fits(origin: Origin, wanted: set[int]) -> int | None:
    """Of equal heads the one that its readers were trained with, so that a right pairing reads as one."""
    if origin.head is None:
        return None
    return next((head for head in origin.heads if head in wanted), origin.head)


def _other(heads: Heads | None, position: int, beside: Origin) -> int | None:
    """The head that ``heads`` holds at ``position`` when it can be none of those that stand ``beside`` it."""
    if heads is None or not heads.told or position >= len(heads.origins) or beside.head is None:
        return None
    origin = heads.origins[position]
    return None if origin.head is None or set(origin.heads) & set(beside.heads) else origin.head


@dataclass(frozen=True, slots=True)
class Tally:
    """Query heads of one layer: how many read a KV head that is not theirs, of how many.

    moved_o counts heads whose o_proj columns are another head's, moved_v the KV positions whose v is another's.
    """

    wrong: int
    heads: int
    unknown: int
    moved_o: int
    moved_v: int

    @property
    def clean(self) -> bool:
        """Whether nothing is misplaced and every head was told."""
        return not (self.wrong or self.unknown or self.moved_o or self.moved_v)


def tally(made: Sequence[Seat]) -> Tally:
    """The counts over the positions of one layer."""
    readers = [reader for seat in made for reader in seat.readers]
    return Tally(
        sum(reader.wrong is True for reader in readers),
        len(readers),
        sum(reader.wrong is None for reader in readers),
        sum(reader.o_head is not None for reader in readers),
        sum(seat.v_head is not None for seat in made),
    )


def rewritten(lineage: Lineage, role: str) -> tuple[int, ...]:
    """Indices of the layers whose ``o`` or ``down`` projection was rewritten, which is no misalignment."""
    found = []
    for layer in lineage.layers:
        parts = [layer.o] if role == "o" else [mlp.down for mlp in layer.mlps]
        if any(part is not None and part.state == "rewritten" for part in parts):
            found.append(layer.index)
    return tuple(found)


def runs(numbers: Iterable[int]) -> str:
    """``0-3,5,7-6``… in the order given: ascending neighbours as one run, no spaces; "" for none."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
