"""GQA106 to GQA109: o_proj, the residual stream, the biases and the q/k norms fit the heads they belong to."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Attention, Layer, Norm, Projection, Subject
from gqacheck.geometry.families import family_by_class
from gqacheck.rules.forward import TOKENS, attention_raises, size_error
from gqacheck.rules.heads import called, columns_in_heads, full_layers, listed, q_width, rows_in_heads
from gqacheck.rules.predict import BROADCAST, refused
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container

_NORM_WIDTHS = {
    "all-heads": "as wide as its projection",
    "per-head": "one head wide",
    "per-head-rows": "heads x head_dim",
}
_HUMAN = {"q": "query head", "k": "KV head", "v": "KV head"}


def o_proj_width(subject: Subject) -> Iterator[Violation]:
    """o_proj does not take as many columns as the query heads produce.

    What it checks
        Columns of o_proj against rows of q_proj (half of them where q carries a gate) in every layer.

    Why it matters
        Each query head writes head_dim columns of o_proj's input. Cutting heads in q_proj alone, or in o_proj alone,
        leaves the two apart.

    What you would see
        `mat1 and mat2 shapes cannot be multiplied (4x72 and 96x96)`; from a folder, a size mismatch while loading.

    Fix
        Cut o_proj's columns with the same list of query heads that q_proj's rows were cut with.

    Known misses
        The right number of columns of the wrong heads (GQA602).

    Source
        Multi-head attention: output = concat(heads) W_o; texts measured on transformers 4.40 and 5.23.
    """
    for layer, attention in full_layers(subject):
        q, o, width = attention.q, attention.o, q_width(attention)
        if q is None or o is None or width is None or not width or not o.columns or o.columns == width:
            continue
        size = attention.head_dim.value if attention.head_dim else None
        gate = " without the gate" if width != q.rows else ""
        yield Violation(
            message=(
                f"{o.name} takes {columns_in_heads(o.columns, size, 'query head')}, "
                f"{called(q)} gives {rows_in_heads(width, size, 'query head')}{gate}"
            ),
            layer=layer.index,
            tensors=(o.tensor, q.tensor),
            expected=Quantity(width, "columns"),
            actual=Quantity(o.columns, "columns"),
            source="tensor shapes",
            consequence=attention_raises(subject, layer),
            fix=f"cut {o.name}'s columns and {q.name}'s rows with the same list of query heads",
        )


def attention_hidden(subject: Subject) -> Iterator[Violation]:
    """The attention block does not read or write hidden_size features.

    What it checks
        Columns of q, k and v and rows of o_proj against hidden_size as the embedding (or, without one, the norms)
        measures it.

    Why it matters
        Every block reads from and adds to one residual stream; its width is the same everywhere.

    What you would see
        `mat1 and mat2 shapes cannot be multiplied (4x96 and 80x96)` at the input, `The size of tensor a (96) must
        match the size of tensor b (80) at non-singleton dimension 2` at the output.

    Fix
        When channels of the residual stream are cut, cut them in the embedding, every norm, every projection and
        lm_head with one list.

    Known misses
        The right number of the wrong channels.

    Source
        The residual connection of every decoder layer; texts measured on transformers 5.23.
    """
    hidden = subject.geometry.hidden_size
    if hidden is None:
        return
    for layer, attention in full_layers(subject):
        readers: dict[int, list[Projection]] = {}
        stored = [attention.fused] if attention.fused else [attention.q, attention.k, attention.v]
        for projection in stored:
            if projection is not None and projection.columns != hidden.value:
                readers.setdefault(projection.columns, []).append(projection)
        for columns, odd in readers.items():
            verb = "read" if len(odd) > 1 else "reads"
            names = listed([projection.name for projection in odd])
            yield _apart(subject, layer, odd, f"{names} {verb} {columns} columns", columns)
        o = attention.o
        if o is not None and o.rows != hidden.value:
            yield _apart(subject, layer, [o], f"{o.name} writes {o.rows} rows", o.rows)


def _apart(subject: Subject, layer: Layer, odd: list[Projection], what: str, width: int) -> Violation:
    hidden = subject.geometry.hidden_size
    assert hidden is not None
    return Violation(
        message=f"{what}, but hidden_size is {hidden.value} ({hidden.source})",
        layer=layer.index,
        tensors=tuple(projection.tensor for projection in odd),
        expected=Quantity(hidden.value, "features"),
        actual=Quantity(width, "features"),
        source="tensor shapes",
        consequence=attention_raises(subject, layer),
        fix="cut the residual stream with one list of channels everywhere, or not at all",
    )


def attention_bias(subject: Subject) -> Iterator[Violation]:
    """A bias of q, k, v or o has the wrong length, is missing where the family has one, or is there where it has none.

    What it checks
        The length of every stored attention bias against its weight's rows; biases that the family, the config
        (attention_bias and the like) or the --base requires; and biases that the family never has.

    Why it matters
        Qwen2 without its q, k and v biases runs and answers nonsense; loading it with LlamaForCausalLM, as some
        pruning scripts do, drops them with a mere warning. A bias that a pruner added to make up for
        what it removed (FLAP does) is lost without an error as soon as a stock class loads the folder.

    What you would see
        Wrong length: `The expanded size of the tensor (96) must match the existing size (80) at non-singleton
        dimension 1`; a length of 1 is broadcast without a word. Missing: `MISSING`, newly initialized. Not expected:
        `UNEXPECTED`, dropped.

    Fix
        Cut the bias with the rows of its weight. Take biases from the parent where they were lost. For added
        biases, set attention_bias (if the family has that switch) or ship modelling code that has them.

    Known misses
        The right length with another head's numbers (GQA605). Families that are not known, and state dicts without a
        config, whose habits cannot be told.

    Source
        Qwen2's attention has biases on q, k and v; An et al. 2024, "FLAP", adds them to o_proj and down_proj. Loading
        behaviour measured on transformers 5.23.
    """
    in_base = _biased_in_base(subject)
    for layer, attention in full_layers(subject):
        missing: dict[str, list[Projection]] = {}
        for projection in (attention.fused, attention.q, attention.k, attention.v, attention.o):
            if projection is None or projection.derived is not None:
                continue
            if projection.bias is not None and projection.bias != projection.rows:
                yield _bias_length(layer, attention, projection)
            policy, why = _bias_policy(subject, projection.role, in_base)
            if policy == "required" and projection.bias is None:
                missing.setdefault(why, []).append(projection)
            elif policy == "never" and projection.bias is not None:
                yield _bias_unexpected(subject, layer, projection, why)
        for why, projections in missing.items():
            yield _bias_missing(subject, layer, projections, why)


def _biased_in_base(subject: Subject) -> frozenset[str]:
    """Roles that have a bias in the parent."""
    if subject.base is None:
        return frozenset()
    return frozenset(
        projection.role
        for _, attention in full_layers(subject.base)
        for projection in (attention.fused, attention.q, attention.k, attention.v, attention.o)
        if projection is not None and projection.derived is None and projection.bias is not None
    )


def _bias_policy(subject: Subject, role: str, in_base: frozenset[str]) -> tuple[str, str]:
    """``required``, ``never`` or ``optional``, and who says so."""
    geometry = subject.geometry
    key = geometry.family.bias_switch.get(role)
    stated = geometry.config.get(key) if key is not None else None
    policy, why = geometry.family.bias.get(role, "optional"), f"{geometry.family.name} is built so"
    if isinstance(stated, bool):
        policy = "required" if stated else "never"
        why = f"{geometry.config_source} says {key}={'true' if stated else 'false'}"
    if policy != "required" and role in in_base:
        return "required", "the base has one"
    return policy, why


def _bias_length(layer: Layer, attention: Attention, projection: Projection) -> Violation:
    assert projection.bias is not None
    unit = attention.q_unit if projection.role == "q" else attention.head_dim.value if attention.head_dim else None
    noun = _HUMAN.get(projection.role)
    rows = rows_in_heads(projection.rows, unit, noun) if noun else f"{projection.rows} rows"
    error = (
        f"The expanded size of the tensor ({projection.rows}) must match the existing size ({projection.bias}) at "
        "non-singleton dimension 1"
    )
    return Violation(
        message=f"the bias of {projection.name} has {projection.bias} entries, its weight {rows}",
        layer=layer.index,
        tensors=(projection.bias_tensor or projection.tensor,),
        expected=Quantity(projection.rows, "entries"),
        actual=Quantity(projection.bias, "entries"),
        source="tensor shapes",
        consequence=BROADCAST if projection.bias == 1 else f"the forward pass raises `{error}` (for {TOKENS} tokens)",
        fix=f"cut the bias with the same rows as the weight of {projection.name}",
    )


def _bias_missing(subject: Subject, layer: Layer, projections: list[Projection], why: str) -> Violation:
    module = layer.attention.module
    built = family_by_class(module.class_name) if module is not None else None
    if subject.container is not Container.MODULE:
        consequence = "loading reports the bias as MISSING and goes on with a newly initialized one"
    elif built is not None and built is not subject.geometry.family:
        consequence = (
            f"the weights were loaded into a {built.name} class, which has no such bias and drops it with a mere "
            "warning; the model runs without it"
        )
    else:
        consequence = "nothing raises: the model runs without the bias it was trained with, and its output changes"
    if why == "the base has one" and subject.container is not Container.MODULE:
        consequence = "nothing raises: the model is loaded and runs without the bias it was trained with"
    rows = sum(projection.rows for projection in projections)
    names = listed([f"{projection.name} ({projection.rows} rows)" for projection in projections])
    verb = "have no bias, but need one" if len(projections) > 1 else "has no bias, but needs one"
    return Violation(
        message=f"{names} {verb}: {why}",
        layer=layer.index,
        tensors=tuple(projection.tensor for projection in projections),
        expected=Quantity(rows, "bias entries"),
        actual=Quantity(0, "bias entries"),
        source=why,
        consequence=consequence,
        fix="take the bias from the parent, cut to the same rows, and prune with code that knows this family",
    )


def _bias_unexpected(subject: Subject, layer: Layer, projection: Projection, why: str) -> Violation:
    switch = subject.geometry.family.bias_switch.get(projection.role)
    way = f"set {switch}=true in the config (every projection it covers then has one), or " if switch else ""
    if subject.container is Container.MODULE:
        consequence = "the pickle runs with it; once saved as a folder, from_pretrained drops it as UNEXPECTED"
    elif subject.checkpoint.own_code:
        consequence = "the stock class would drop it as UNEXPECTED; the checkpoint's own code may use it"
    else:
        consequence = "from_pretrained drops it: the key is reported as UNEXPECTED and the model runs without it"
    note = subject.checkpoint.own_code
    return Violation(
        message=f"{projection.name} has a bias of {projection.bias} entries, but has none by design: {why}",
        layer=layer.index,
        tensors=(projection.bias_tensor or projection.tensor,),
        expected=Quantity(0, "bias entries"),
        actual=Quantity(projection.bias or 0, "bias entries"),
        source=why,
        consequence=consequence,
        fix=f"{way}ship modelling code that has this bias",
        severity=Severity.NOTE if note else by_container(subject, folder=Severity.ERROR, module=Severity.NOTE),
    )


def qk_norm_width(subject: Subject) -> Iterator[Violation]:
    """A query or key norm has another width than its family gives it.

    What it checks
        q_norm and k_norm by the habit of the family: one head wide (Qwen3, Gemma 3), as wide as the whole projection
        (OLMo 2, OLMoE), or one row per head (Cohere, StableLM). Where both norms of a layer agree with each other and
        with the rows, and only head_dim says otherwise, head_dim is what is in doubt (GQA111).

    Why it matters
        A per-head norm belongs to head_dim and must not be cut with heads; a norm over all heads must be cut with
        them. Cutting tools get the two mixed up.

    What you would see
        `The size of tensor a (6) must match the size of tensor b (8) at non-singleton dimension 3` (per head) or 2
        (all heads). A width of 1 is broadcast and runs.

    Fix
        Leave per-head norms alone when heads are cut; cut norms over all heads with the same rows as q_proj or
        k_proj.

    Known misses
        The right width with another head's numbers. Even a right cut changes what a norm over all heads computes.
        Families that are not known.

    Source
        The attention classes of transformers 5.23; texts measured there.
    """
    kind = subject.geometry.family.qk_norm
    if kind is None:
        return
    for layer, attention in full_layers(subject):
        if kind != "all-heads" and norms_doubt_head_dim(attention):
            continue
        for norm, projection, unit, heads in (
            (attention.q_norm, attention.q, attention.q_unit, attention.n_q_heads),
            (attention.k_norm, attention.k, _size(attention), attention.n_kv_heads),
        ):
            if norm is None or projection is None:
                continue
            expected = _expected_shape(kind, attention, projection, heads)
            if expected is None or norm.shape[-len(expected) :] == expected:
                continue
            yield _norm_violation(subject, layer, norm, projection, unit, expected)


def _size(attention: Attention) -> int | None:
    return attention.head_dim.value if attention.head_dim else None


def norms_doubt_head_dim(attention: Attention) -> bool:
    """Whether both per-head norms agree on a width that fits the rows and is not the head_dim believed."""
    q_norm, k_norm, size = attention.q_norm, attention.k_norm, _size(attention)
    if q_norm is None or k_norm is None or size is None or attention.q is None or attention.k is None:
        return False
    width = q_norm.width
    return (
        width == k_norm.width != size and width > 1 and attention.q.rows % width == 0 and attention.k.rows % width == 0
    )


def _expected_shape(
    kind: str, attention: Attention, projection: Projection, heads: int | None
) -> tuple[int, ...] | None:
    size = _size(attention)
    if kind == "all-heads":
        return (projection.rows,)
    if size is None:
        return None
    if kind == "per-head":
        return (size,)
    return None if heads is None else (heads, size)


def _norm_violation(
    subject: Subject, layer: Layer, norm: Norm, projection: Projection, unit: int | None, expected: tuple[int, ...]
) -> Violation:
    shape = " x ".join(map(str, norm.shape))
    wanted = " x ".join(map(str, expected))
    rows = rows_in_heads(projection.rows, unit, _HUMAN[projection.role])
    kind = subject.geometry.family.qk_norm or ""
    if subject.container is not Container.MODULE:
        consequence = refused(subject, norm.tensor.removeprefix(f"{layer.path}."), norm.shape, expected)
    elif norm.width == 1:
        consequence = BROADCAST
    else:
        dimension = 2 if kind == "all-heads" else 3
        consequence = f"the forward pass raises `{size_error(norm.width, expected[-1], dimension)}`"
        if norm.width == expected[-1]:
            consequence = "the forward pass raises a shape error where the norm meets the heads"
    return Violation(
        message=(
            f"{norm.name} is {shape} wide, but {subject.geometry.family.name} has it {_NORM_WIDTHS[kind]}, {wanted}: "
            f"{called(projection)} has {rows}"
        ),
        layer=layer.index,
        tensors=(norm.tensor,),
        expected=Quantity(wanted if len(expected) > 1 else expected[0], "features"),
        actual=Quantity(shape if len(norm.shape) > 1 else norm.width, "features"),
        source="tensor shapes",
        consequence=consequence,
        fix=(
            "leave the norm as the parent has it: it belongs to head_dim, not to the heads"
            if kind == "per-head"
            else "cut the norm with the same heads as its projection"
        ),
    )
