"""GQA409, 410 and 414: norms, tensors that are absent or unknown, and dtypes inside one layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Layer, Norm, Projection, Subject
from gqacheck.rules.blocks import EXPERTS_ALIKE, blocks, inside
from gqacheck.rules.lost import lost_tensors
from gqacheck.rules.predict import BROADCAST, absent, left_over, ranges, refused
from gqacheck.rules.rule import Quantity, Severity, Violation
from gqacheck.text import printable, printable_list

_LAYER_NORM = frozenset({"starcoder2", "stablelm", "falcon", "phi", "phimoe", "nemotron"})
"""Families that normalise with torch's layer_norm, which broadcasts nothing; the others multiply by hand."""

_MOST_PATTERNS = 16
_MOST_TENSORS = 16


def norm_width(subject: Subject) -> Iterator[Violation]:
    """A norm is not as wide as the residual stream.

    What it checks
        Elements of every layer's norms and of the final norm against the hidden size (the embedding's columns, else
        what most norms say). q_norm and k_norm are GQA109.

    Why it matters
        A cut of the hidden size must reach the norms. RMSNorm multiplies by its weight without looking: a weight of
        one element is broadcast and nothing complains.

    What you would see
        RMSNorm: `The size of tensor a (48) must match the size of tensor b (96)`; with one element nothing at all.
        LayerNorm: `Expected weight to be of same shape as normalized_shape`. Folder: `MISMATCH … Reinit due to size
        mismatch`.

    Fix
        Cut every norm with the list of hidden channels that were kept.

    Known misses
        The right number of the wrong channels. The norm's own bias.

    Source
        LlamaRMSNorm and torch.nn.LayerNorm under transformers 5.23 and torch 2.13, measured.
    """
    hidden = subject.geometry.hidden_size
    if hidden is None:
        return
    norms: list[tuple[Norm, Layer | None]] = [
        (norm, layer) for layer in subject.geometry.layers for norm in layer.norms if norm.role not in ("q", "k")
    ]
    if subject.geometry.final_norm is not None:
        norms.append((subject.geometry.final_norm, None))
    for norm, layer in norms:
        width = _elements(norm)
        if width == hidden.value:
            continue
        name = inside(layer, norm.tensor) if layer is not None else norm.tensor
        values = "value" if width == 1 else "values"
        yield Violation(
            message=f"{norm.name} holds {width} {values}, but hidden_size is {hidden.value} ({hidden.source})",
            layer=layer.index if layer is not None else None,
            tensors=(norm.tensor,),
            expected=Quantity(hidden.value, "norm values"),
            actual=Quantity(width, "norm values"),
            source="tensor shapes",
            consequence=_norm_consequence(subject, name, norm, width, hidden.value),
            fix=f"keep the {hidden.value} values of {norm.name} that belong to the residual stream",
        )


def _elements(norm: Norm) -> int:
    total = 1
    for length in norm.shape:
        total *= length
    return total


def _norm_consequence(subject: Subject, name: str, norm: Norm, width: int, hidden: int) -> str:
    if subject.container is not Container.MODULE:
        return refused(subject, name, norm.shape, (hidden,))
    if subject.geometry.family.name in _LAYER_NORM:
        return (
            f"Expected weight to be of same shape as normalized_shape, but got weight of shape [{width}] and "
            f"normalized_shape = [{hidden}]"
        )
    if width == 1:
        return BROADCAST
    return f"The size of tensor a ({width}) must match the size of tensor b ({hidden})"


def missing_tensor(subject: Subject) -> Iterator[Violation]:
    """A tensor that the family needs is not stored, or one is stored that the family does not know.

    What it checks
        Every weight, and every required norm, of every layer, the embedding, the final norm and lm_head (unless it is
        tied) against the family's list: absent is an error. Tensors that the list does not explain are a warning,
        grouped by their name without numbers; known leftovers (rotary_emb.inv_freq, masked_bias) are passed over.
        Of a family that is not known nothing can be missing but what its other layers have.

    Why it matters
        Loading does not stop for either: what is absent is filled with random numbers, what is unknown is dropped, and
        both are one line in a log.

    What you would see
        `model.layers.1.mlp.up_proj.weight | MISSING` … `newly initialized because missing from the checkpoint`, or
        `UNEXPECTED`; the model then runs. A whole-module pickle: `AttributeError` or `'NoneType' object …`.

    Fix
        Save all of the model's state dict; keep the spelling of the stock class.

    Known misses
        Biases (GQA108). Packed weights are skipped. What lies in a shard that is missing is GQA014's.

    Source
        Loading report of transformers 5.23, measured; the families' names as its classes write them.
    """
    yield from _missing(subject)
    yield from _unknown(subject)


def _missing(subject: Subject) -> Iterator[Violation]:
    paths = {layer.index: f"{layer.path}." for layer in subject.geometry.layers}
    groups: dict[tuple[int | None, str], list[str]] = {}
    lost = lost_tensors(subject)
    for name, index in subject.geometry.missing:
        if name in lost:
            continue
        short = name.removeprefix(paths.get(index, "")) if index is not None else name
        groups.setdefault((index, _pattern(short)), []).append(name)
    for (index, pattern), names in groups.items():
        short = names[0].removeprefix(paths.get(index, "")) if index is not None else names[0]
        what = printable(short if len(names) == 1 else pattern, 120)
        which = "" if len(names) == 1 else f" for N = {ranges(_numbers(names), 6)}"
        if subject.container is Container.MODULE:
            consequence = "the forward pass needs it and raises, if nothing else was put in its place on purpose"
        elif ".experts." in pattern and subject.container is Container.FOLDER:
            consequence = EXPERTS_ALIKE
        else:
            consequence = absent(subject, what)
        yield Violation(
            message=f"{what} is not stored{which}, and the {subject.geometry.family.name} family needs it",
            layer=index,
            tensors=tuple(names[:_MOST_TENSORS]),
            expected=Quantity(len(names), "tensors"),
            actual=Quantity(0, "tensors"),
            source="tensor names",
            consequence=consequence,
            fix="save the model's whole state dict, or restore this tensor from the parent",
        )


def _numbers(names: list[str]) -> list[int]:
    """The last number in each name: of experts, which one."""
    found = ([part for part in name.split(".") if part.isdecimal() and len(part) <= 6] for name in names)
    return [int(numbers[-1]) for numbers in found if numbers]


def _unknown(subject: Subject) -> Iterator[Violation]:
    groups: dict[str, list[str]] = {}
    for name in subject.geometry.unknown:
        groups.setdefault(_pattern(name), []).append(name)
    shown = list(groups.items())[:_MOST_PATTERNS]
    for pattern, names in shown:
        stored = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
        yield _unknown_violation(subject, f"{stored} stored as {printable(pattern, 120)}", names)
    rest = [name for _, names in list(groups.items())[_MOST_PATTERNS:] for name in names]
    if rest:
        yield _unknown_violation(subject, f"{len(rest)} more tensors are stored ({printable_list(rest, 2)})", rest)


def _unknown_violation(subject: Subject, what: str, names: list[str]) -> Violation:
    family = subject.geometry.family
    whose = "no known family uses that name" if family.generic else f"the {family.name} family has no such tensor"
    return Violation(
        message=f"{what}, and {whose}",
        tensors=tuple(names[:_MOST_TENSORS]),
        expected=Quantity(0, "unknown tensors"),
        actual=Quantity(len(names), "unknown tensors"),
        source="tensor names",
        consequence="it is used only by the classes that were pickled; no stock class loads it"
        if subject.container is Container.MODULE
        else left_over(subject, "them"),
        fix="rename it to what the class expects, or remove it if nothing needs it",
        severity=Severity.WARNING,
    )


def _pattern(name: str) -> str:
    return ".".join("N" if part.isdecimal() else part for part in name.split("."))


def mixed_dtype(subject: Subject) -> Iterator[Violation]:
    """The projections of one layer are stored in different dtypes.

    What it checks
        dtypes of q, k, v, o, gate, up, down and the experts inside one layer. Norms, routers, sinks and buffers in
        float32 are normal and not compared; a layer that is float32 as a whole beside half-precision ones is not
        either.

    Why it matters
        It is what a pruner leaves that computes the new weight in float32 and puts it back as it is.

    What you would see
        Whole-module pickle: `expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16`. Folder:
        from_pretrained casts everything to the config's dtype, without a word.

    Fix
        Cast the new weights to the dtype of the old ones before saving.

    Known misses
        A bias of another dtype than its weight.

    Source
        torch.nn.functional.linear on torch 2.13, measured.
    """
    for layer in subject.geometry.layers:
        by_tensor = {projection.tensor: projection for projection in _projections(layer)}
        found = Counter(projection.dtype for projection in by_tensor.values())
        if len(found) <= 1:
            continue
        usual = found.most_common(1)[0][0]
        odd = [projection for projection in by_tensor.values() if projection.dtype != usual]
        odd_dtypes = sorted({projection.dtype for projection in odd})
        names = printable_list(dict.fromkeys(projection.name.rpartition(".")[2] for projection in odd), 6)
        yield Violation(
            message=f"{names}: {len(odd)} of {len(by_tensor)} projections are {' and '.join(odd_dtypes)}, the rest "
            f"{usual}",
            layer=layer.index,
            tensors=tuple(projection.tensor for projection in odd)[:_MOST_TENSORS],
            expected=Quantity(usual, "dtype"),
            actual=Quantity(" and ".join(odd_dtypes), "dtype"),
            source="tensor dtypes",
            consequence="expected m1 and m2 to have the same dtype"
            if subject.container is Container.MODULE
            else "from_pretrained casts all of them to one dtype, without a word",
            fix=f"cast them to {usual} before saving",
        )


def _projections(layer: Layer) -> Iterator[Projection]:
    attention = layer.attention
    own = (attention.q, attention.k, attention.v, attention.o)
    parts = [own, *((block.gate, block.up, block.down) for block in blocks(layer.mlp))]
    for projections in parts:
        for projection in projections:
            if projection is not None:
                yield projection
