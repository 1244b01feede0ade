"""The gate/up/down triples of one layer, dense MLP and experts alike, and faults of them merged into violations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Layer, Mlp, Projection, Subject
from gqacheck.rules.predict import RANDOM, ranges, refused
from gqacheck.rules.rule import Quantity, Violation

_MOST_TENSORS = 16
_EXPERTS_DIFFER = (
    "from_pretrained merges the experts into one tensor and raises: CONVERSION, stack expects each tensor to be equal "
    "size"
)
EXPERTS_ALIKE = f"from_pretrained merges the experts, reports MISMATCH for the merged tensor and raises; {RANDOM}"


@dataclass(frozen=True, slots=True)
class Block:
    """One gate/up/down triple: the dense MLP (``expert`` None) or one expert of a layer."""

    gate: Projection | None
    up: Projection | None
    down: Projection | None
    fused: Projection | None
    expert: int | str | None = None

    @property
    def inner(self) -> int | None:
        """Width of the activation between up and down."""
        widest = self.up or self.gate
        return widest.rows if widest else None


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one block. ``{of}`` in the message is where the experts are named."""

    message: str
    tensors: tuple[str, ...]
    expected: Quantity
    actual: Quantity
    consequence: str
    fix: str


def blocks(mlp: Mlp) -> Iterator[Block]:
    """The triples of one layer: one for a dense MLP, one per stored expert (all stacked ones together) otherwise."""
    if mlp.kind == "moe":
        for expert in mlp.experts:
            yield Block(expert.gate, expert.up, expert.down, expert.fused, expert.index)
    else:
        yield Block(mlp.gate, mlp.up, mlp.down, mlp.fused)


def short(projection: Projection) -> str:
    """The last part of its module name: ``w1`` for ``block_sparse_moe.experts.3.w1``."""
    return projection.name.rpartition(".")[2]


def inside(layer: Layer, name: str) -> str:
    """A tensor's name with the layer left out: ``….mlp.up_proj.weight``; an expert's number becomes ``E``."""
    rest = name.removeprefix(f"{layer.path}.")
    return "…." + ".".join("E" if part.isdecimal() else part for part in rest.split("."))


def merged(layer: Layer, faults: Iterable[tuple[Block, Fault]]) -> Iterator[Violation]:
    """Violations of one layer: experts with the same fault are one."""
    groups: dict[Fault, list[tuple[Block, tuple[str, ...]]]] = {}
    for block, fault in faults:
        key = Fault(fault.message, (), fault.expected, fault.actual, fault.consequence, fault.fix)
        groups.setdefault(key, []).append((block, fault.tensors))
    for fault, found in groups.items():
        numbered = sum(isinstance(block.expert, int) for block, _ in found)
        alike = fault.consequence == _EXPERTS_DIFFER and numbered == layer.mlp.n_experts_stored
        tensors = dict.fromkeys(name for _, own in found for name in own)
        yield Violation(
            message=fault.message.replace("{of}", _of(layer.mlp, [block.expert for block, _ in found])),
            layer=layer.index,
            tensors=tuple(tensors)[:_MOST_TENSORS],
            expected=fault.expected,
            actual=fault.actual,
            source="tensor shapes",
            consequence=EXPERTS_ALIKE if alike else fault.consequence,
            fix=fault.fix,
        )


def _of(mlp: Mlp, experts: Sequence[int | str | None]) -> str:
    """`` of experts 3 and 5``, `` of 5 of 8 experts (0-4)``, `` of the shared expert``; "" for a dense MLP."""
    numbers = [expert for expert in experts if isinstance(expert, int)]
    words = [
        {"shared": "the shared expert", "stacked": "the stacked experts"}[e] for e in experts if isinstance(e, str)
    ]
    if len(numbers) == 1:
        words.insert(0, f"expert {numbers[0]}")
    elif numbers:
        words.insert(0, f"{len(numbers)} of {mlp.n_experts_stored} experts ({ranges(numbers)})")
    return f" of {' and '.join(words)}" if words else ""


def names(*projections: Projection | None) -> tuple[str, ...]:
    """The stored names of the weights, each once."""
    return tuple(dict.fromkeys(projection.tensor for projection in projections if projection is not None))


def weight_refused(
    subject: Subject,
    layer: Layer,
    block: Block,
    weight: Projection,
    *,
    rows: int | None = None,
    columns: int | None = None,
) -> str:
    """What loading says of a weight that the class builds with other ``rows`` or ``columns``.

    transformers 5 merges numbered experts into one tensor per layer while it loads them.
    """
    if block.expert == "stacked":
        return f"from_pretrained reports MISMATCH for {inside(layer, weight.tensor)} and raises; {RANDOM}"
    if isinstance(block.expert, int) and subject.container is Container.FOLDER:
        return _EXPERTS_DIFFER
    if weight.derived and block.fused is not None:
        weight, rows = block.fused, None if rows is None else 2 * rows
    built = (weight.rows if rows is None else rows, weight.columns if columns is None else columns)
    return refused(subject, inside(layer, weight.tensor), (weight.rows, weight.columns), built)
