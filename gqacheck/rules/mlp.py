"""GQA301 to GQA304: the feed-forward block must agree with itself and with the residual stream."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Layer, Measured, Mlp, Projection, Subject
from gqacheck.rules.blocks import Block, Fault, blocks, inside, merged, names, short, weight_refused
from gqacheck.rules.built import built_width
from gqacheck.rules.experts import router_experts
from gqacheck.rules.needs import needs_dense_weights
from gqacheck.rules.predict import BROADCAST, RANDOM, cannot_multiply, must_match, refused
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation

_UP_FIRST = frozenset({"phi3", "glm", "glm4"})
"""Families that compute up * act(gate), so that torch names up first."""


def gate_up_mismatch(subject: Subject) -> Iterator[Violation]:
    """The gate and up projections of an MLP have different numbers of rows.

    What it checks
        Rows of gate_proj against rows of up_proj in every layer: separate or fused (a fused gate_up with an odd
        number of rows has no halves), dense, shared, numbered or stacked experts. Experts with the same fault
        are one finding.

    Why it matters
        Gate and up are multiplied channel by channel: channel 17 of one belongs to channel 17 of the other. They
        must be cut to the same channels.

    What you would see
        Whole-module pickle: `The size of tensor a (80) must match the size of tensor b (96) at non-singleton
        dimension 2`; nothing at all if one of them has a single row, which is broadcast. Folder: `MISMATCH … Reinit
        due to size mismatch`.

    Fix
        Cut gate_proj, up_proj and the columns of down_proj with one and the same list of channels.

    Known misses
        Equal numbers of different channels: that is lineage (GQA604). MLPs without a gate have nothing to compare.

    Source
        The SwiGLU block of every gated family; error texts measured on transformers 5.23.
    """
    for layer in subject.geometry.layers:
        yield from merged(layer, _gate_up_faults(subject, layer))


def _gate_up_faults(subject: Subject, layer: Layer) -> Iterator[tuple[Block, Fault]]:
    for block in blocks(layer.mlp):
        gate, up, fused = block.gate, block.up, block.fused
        if gate is None or up is None or gate.rows == up.rows:
            continue
        if fused is not None and fused.tensor in (gate.tensor, up.tensor):
            message = f"{short(fused)}{{of}} has {fused.rows} rows, an odd number: gate and up cannot have half each"
            fix = "cut the gate half and the up half with the same list of channels"
            expected, actual = Quantity(fused.rows - 1, "rows"), Quantity(fused.rows, "rows")
            a, b = (up.rows, gate.rows) if subject.geometry.family.name in _UP_FIRST else (gate.rows, up.rows)
        else:
            message = f"{short(gate)}{{of}} has {gate.rows} rows, {short(up)} has {up.rows}"
            fix = f"cut {short(gate)}, {short(up)} and {_down_name(block)}'s columns with the same list of channels"
            expected, actual = Quantity(up.rows, "gate rows"), Quantity(gate.rows, "gate rows")
            a, b = gate.rows, up.rows
        consequence = must_match(a, b)
        if subject.container is not Container.MODULE:
            consequence = _gate_up_refused(subject, layer, block, gate, up)
        yield block, Fault(message, names(gate, up), expected, actual, consequence, fix)


def _down_name(block: Block) -> str:
    return short(block.down) if block.down is not None else "down_proj"


def _gate_up_refused(subject: Subject, layer: Layer, block: Block, gate: Projection, up: Projection) -> str:
    stated = built_width(subject, block, layer.index)
    if gate.derived and block.fused is not None and stated is None:
        return f"every class builds an even number of rows, so loading reports a size mismatch and raises; {RANDOM}"
    built = stated if stated is not None else up.rows
    return weight_refused(subject, layer, block, gate if gate.rows != built else up, rows=built)


def down_width(subject: Subject) -> Iterator[Violation]:
    """The down projection takes another number of channels than gate and up produce.

    What it checks
        Columns of down_proj against rows of up_proj (and gate_proj), for dense MLPs with and without a gate, for
        shared, numbered and stacked experts. Where gate and up differ (GQA301), down may match either of them.

    Why it matters
        Every column of down_proj belongs to one channel of gate and up; without the same cut the product does not
        exist.

    What you would see
        Whole-module pickle: `mat1 and mat2 shapes cannot be multiplied (…x96 and 80x64)`; stacked experts:
        `contraction dimension of mat_a and mat_b must match`. Folder: `MISMATCH … Reinit due to size mismatch`.

    Fix
        Cut down_proj's columns with the list of channels that gate and up were cut with.

    Known misses
        The right number of the wrong columns (GQA604).

    Source
        torch.nn.Linear: y = x W^T, W is [out, in]; error texts measured on torch 2.13.
    """
    for layer in subject.geometry.layers:
        yield from merged(layer, _down_faults(subject, layer))


def _down_faults(subject: Subject, layer: Layer) -> Iterator[tuple[Block, Fault]]:
    for block in blocks(layer.mlp):
        down, inner = block.down, block.inner
        if down is None or inner is None:
            continue
        producers = [projection for projection in (block.gate, block.up) if projection is not None]
        if down.columns in {projection.rows for projection in producers}:
            continue
        makers = " and ".join(dict.fromkeys(short(projection) for projection in producers))
        give = "gives" if len(set(names(*producers))) == 1 else "give"
        if block.fused is not None and block.fused.tensor == producers[0].tensor:
            source = f"half of {short(block.fused)} gives {inner}"
        else:
            source = f"{makers} {give} {inner}"
        consequence = cannot_multiply(inner, down.columns, down.rows)
        if block.expert == "stacked":
            consequence = "contraction dimension of mat_a and mat_b must match"
        if subject.container is not Container.MODULE:
            consequence = weight_refused(subject, layer, block, down, columns=inner)
        yield (
            block,
            Fault(
                f"{short(down)}{{of}} takes {down.columns} channels, but {source}",
                names(down, *producers),
                Quantity(inner, "down columns"),
                Quantity(down.columns, "down columns"),
                consequence,
                f"cut {short(down)}'s columns with the list of channels that {makers} {give}",
            ),
        )


def mlp_hidden(subject: Subject) -> Iterator[Violation]:
    """An MLP weight does not fit the residual stream.

    What it checks
        Columns of gate, up and the router, and rows of down, against the hidden size, which is measured on the
        embedding first, then on the norms, then read from the config.

    Why it matters
        The residual stream has one width from embedding to lm_head. A cut of the hidden size must reach every
        weight that reads it or writes to it.

    What you would see
        Inputs: `mat1 and mat2 shapes cannot be multiplied (…x96 and 80x72)`. Outputs: `The size of tensor a (96) must
        match the size of tensor b (80)`; a down_proj with a single row is broadcast in silence. Folder: `MISMATCH
        … Reinit due to size mismatch`.

    Fix
        Cut the hidden size everywhere or nowhere: embedding, norms, q, k, v and gate, up by columns, o and down by
        rows, lm_head by columns.

    Known misses
        The right number of the wrong hidden channels.

    Source
        The residual connection of every decoder layer; error texts measured on torch 2.13.
    """
    hidden = subject.geometry.hidden_size
    if hidden is None:
        return
    for layer in subject.geometry.layers:
        yield from merged(layer, _hidden_faults(subject, layer, hidden))


def _hidden_faults(subject: Subject, layer: Layer, hidden: Measured) -> Iterator[tuple[Block, Fault]]:
    width = f"hidden_size is {hidden.value} ({hidden.source})"
    for block, reader in _readers(layer.mlp):
        if reader.columns == hidden.value:
            continue
        consequence = cannot_multiply(hidden.value, reader.columns, reader.rows)
        if subject.container is not Container.MODULE:
            consequence = weight_refused(subject, layer, block, reader, columns=hidden.value)
        yield (
            block,
            Fault(
                f"{short(reader)}{{of}} takes {reader.columns} inputs, but {width}",
                (reader.tensor,),
                Quantity(hidden.value, "inputs"),
                Quantity(reader.columns, "inputs"),
                consequence,
                f"keep {hidden.value} columns in {short(reader)}, the ones that the residual stream kept",
            ),
        )
    for block in blocks(layer.mlp):
        down = block.down
        if down is None or down.rows == hidden.value:
            continue
        consequence = must_match(hidden.value, down.rows)
        if subject.container is not Container.MODULE:
            consequence = weight_refused(subject, layer, block, down, rows=hidden.value)
        yield (
            block,
            Fault(
                f"{short(down)}{{of}} gives {down.rows} outputs, but {width}",
                (down.tensor,),
                Quantity(hidden.value, "outputs"),
                Quantity(down.rows, "outputs"),
                consequence,
                f"keep {hidden.value} rows in {short(down)}, the ones that the residual stream kept",
            ),
        )


def _readers(mlp: Mlp) -> Iterator[tuple[Block, Projection]]:
    """The weights that read the residual stream, each stored one once."""
    for block in blocks(mlp):
        seen: set[str] = set()
        for projection in (block.fused, block.gate, block.up):
            if projection is not None and projection.tensor not in seen:
                seen.add(projection.tensor)
                yield block, projection
    if mlp.router is not None:
        yield Block(None, None, None, None), mlp.router


def mlp_bias(subject: Subject) -> Iterator[Violation]:
    """A bias in an MLP is not as long as its weight has rows.

    What it checks
        Length of every gate, up, down and fused bias against the rows of its weight, experts included. The router's
        bias is GQA305's.

    Why it matters
        Pruners that slice `weight` forget `bias` beside it: most Llamas have none in the MLP, StarCoder2, Phi and
        some Llamas do.

    What you would see
        Whole-module pickle: `The expanded size of the tensor (72) must match the existing size (60) at non-singleton
        dimension 1`; a bias of length 1 is broadcast in silence. Folder: `MISMATCH … Reinit due to size mismatch`.

    Fix
        Cut the bias with the list of rows that its weight was cut with.

    Known misses
        The right length from the wrong rows (GQA605); a bias that was dropped altogether is GQA410's where the
        family is known to need it.

    Source
        torch.nn.Linear; error text measured on torch 2.13.
    """
    for layer in subject.geometry.layers:
        yield from merged(layer, _bias_faults(subject, layer))


def _bias_faults(subject: Subject, layer: Layer) -> Iterator[tuple[Block, Fault]]:
    for block in blocks(layer.mlp):
        seen: set[str] = set()
        for projection in (block.fused, block.gate, block.up, block.down):
            if projection is None or projection.tensor in seen:
                continue
            seen.add(projection.tensor)
            if projection.bias is None or projection.bias == projection.rows:
                continue
            consequence = (
                BROADCAST
                if projection.bias == 1
                else f"The expanded size of the tensor ({projection.rows}) must match the existing size "
                f"({projection.bias}) at non-singleton dimension 1"
            )
            name = projection.bias_tensor or f"{projection.tensor.removesuffix('weight')}bias"
            if subject.container is not Container.MODULE:
                consequence = _bias_refused(subject, layer, block, projection, name)
            yield (
                block,
                Fault(
                    f"the bias of {short(projection)}{{of}} holds {projection.bias} values, its weight has "
                    f"{projection.rows} rows",
                    (name, projection.tensor),
                    Quantity(projection.rows, "bias values"),
                    Quantity(projection.bias, "bias values"),
                    consequence,
                    f"cut the bias of {short(projection)} with the rows of its weight",
                ),
            )


def _bias_refused(subject: Subject, layer: Layer, block: Block, projection: Projection, name: str) -> str:
    """The bias is at fault, or, where it is as the config says, its weight."""
    if block.expert == "stacked":
        return f"from_pretrained reports MISMATCH for {inside(layer, name)} and raises; {RANDOM}"
    stated = built_width(subject, block, layer.index) if projection.role != "down" else projection.rows
    built = projection.rows if stated is None else 2 * stated if projection.role == "gate_up" else stated
    if projection.bias == built:
        return weight_refused(subject, layer, block, projection, rows=built)
    return refused(subject, inside(layer, name), (projection.bias or 0,), (built,))


MLP_RULES: tuple[Rule, ...] = (
    Rule("GQA301", "gate-up-mismatch", Severity.ERROR, "shapes", gate_up_mismatch, needs_dense_weights),
    Rule("GQA302", "down-width", Severity.ERROR, "shapes", down_width, needs_dense_weights),
    Rule("GQA303", "mlp-hidden", Severity.ERROR, "shapes", mlp_hidden, needs_dense_weights),
    Rule("GQA304", "mlp-bias", Severity.ERROR, "shapes", mlp_bias, needs_dense_weights),
    Rule("GQA305", "router-experts", Severity.ERROR, "shapes", router_experts, needs_dense_weights),
)
