"""GQA101 to GQA104 and GQA110: whole heads, and query heads that divide among the KV heads.

The other attention rules are in ``ratio`` (105), ``attention_widths`` (106 to 109) and ``head_dim`` (111).
"""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.geometry.facts import Attention, Layer, Projection, Subject
from gqacheck.rules.attention_widths import attention_bias, attention_hidden, o_proj_width, qk_norm_width
from gqacheck.rules.forward import attention_raises
from gqacheck.rules.head_dim import head_dim_ambiguous
from gqacheck.rules.heads import (
    by_source,
    called,
    choice,
    full_layers,
    is_guess,
    legal_counts,
    needs_attention,
    needs_heads,
    rows_in_heads,
)
from gqacheck.rules.ratio import ratio_drift
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation


def q_rows(subject: Subject) -> Iterator[Violation]:
    """The rows of q_proj are not a whole number of heads.

    What it checks
        Rows of q_proj (or of the query part of a fused tensor) modulo head_dim; where a family keeps a gate beside
        each query head, modulo twice head_dim. The remainder is exact.

    Why it matters
        Attention views the rows as heads of head_dim. One row too many or too few shifts every later row into the
        neighbouring head, so no framework accepts it.

    What you would see
        `shape '[1, 4, -1, 8]' is invalid for input of size 360` with transformers 4.48 and later, `shape
        '[1, 4, 12, 8]' is invalid …` before. A folder does not get that far: from_pretrained reports a size mismatch.

    Fix
        Cut whole heads: all head_dim rows of a query head in q_proj, and the same columns of o_proj.

    Known misses
        A wrong head_dim that happens to divide the rows. Whole heads of the wrong rows (that is lineage, GQA601).

    Source
        ``view(batch, tokens, heads, head_dim)`` in every attention class; texts measured on 4.33 to 5.23.
    """
    for layer, attention in full_layers(subject):
        if attention.q is not None and attention.q_unit and attention.q.rows % attention.q_unit:
            yield _not_whole(subject, layer, [attention.q], attention.q_unit, "query head")


def kv_rows(subject: Subject) -> Iterator[Violation]:
    """The rows of k_proj or v_proj are not a whole number of heads.

    What it checks
        Rows of k_proj and of v_proj (or of the k and v parts of a fused tensor) modulo head_dim, each by itself.

    Why it matters
        A KV head with a few rows missing is read by a whole group of query heads; and the view into heads fails.

    What you would see
        `shape '[1, 4, -1, 8]' is invalid for input of size 80` with transformers 4.48 and later, `shape
        '[1, 4, 3, 8]' is invalid …` before; from a folder, a size mismatch while loading.

    Fix
        Cut whole KV heads: the same head_dim rows in k_proj and v_proj, with the query heads that read them.

    Known misses
        A wrong head_dim that happens to divide the rows.

    Source
        ``view(batch, tokens, heads, head_dim)`` in every attention class; texts measured on 4.33 to 5.23.
    """
    for layer, attention in full_layers(subject):
        if attention.head_dim is None:
            continue
        size = attention.head_dim.value
        odd = [p for p in (attention.k, attention.v) if p is not None and p.rows % size]
        if len(odd) == 2 and odd[0].rows == odd[1].rows:
            yield _not_whole(subject, layer, odd, size, "KV head")
        else:
            for projection in odd:
                yield _not_whole(subject, layer, [projection], size, "KV head")


def _not_whole(subject: Subject, layer: Layer, odd: list[Projection], unit: int, noun: str) -> Violation:
    rows = odd[0].rows
    whole = tuple(count for count in (rows // unit, rows // unit + 1) if count)
    nearest = min(whole, key=lambda count: abs(count * unit - rows))
    names = " and ".join(called(projection) for projection in odd)
    return Violation(
        message=(
            f"{names} {'have' if len(odd) > 1 else 'has'} {rows_in_heads(rows, unit, noun)}"
            f"{by_source(layer.attention.head_dim)}"
        ),
        layer=layer.index,
        tensors=tuple(dict.fromkeys(projection.tensor for projection in odd)),
        expected=Quantity(nearest * unit, "rows"),
        actual=Quantity(rows, "rows"),
        source="tensor shapes",
        consequence=attention_raises(subject, layer),
        fix=f"cut whole heads: {choice(tuple(count * unit for count in whole))} rows ({choice(whole)} {noun}s)",
        severity=Severity.WARNING if is_guess(layer.attention.head_dim) else None,
    )


def kv_mismatch(subject: Subject) -> Iterator[Violation]:
    """k_proj and v_proj have different numbers of rows.

    What it checks
        Rows of k_proj against rows of v_proj in every layer with softmax attention, separate or fused.

    Why it matters
        Each key head has one value head. With fewer value heads than key heads the attention weights of some heads
        have no values of their own.

    What you would see
        Before transformers 4.48 a view error on the shorter one. Since then `The size of tensor a (12) must match the
        size of tensor b (8) at non-singleton dimension 1` under eager attention; sdpa can run without a word,
        with every query head reading somebody else's values, until a batch is padded.

    Fix
        Cut k_proj and v_proj with one and the same list of KV heads.

    Known misses
        Equal numbers of different heads: that is lineage (GQA603).

    Source
        Scaled dot-product attention: one V row per K row; silence and texts measured on 5.23.
    """
    for layer, attention in full_layers(subject):
        k, v = attention.k, attention.v
        if k is None or v is None or k.rows == v.rows or not k.rows or not v.rows:
            continue
        size = attention.head_dim.value if attention.head_dim else None
        fewer = min(k.rows, v.rows)
        yield Violation(
            message=(
                f"{called(k)} has {rows_in_heads(k.rows, size, 'KV head')}, "
                f"{called(v)} has {rows_in_heads(v.rows, size, 'KV head')}"
            ),
            layer=layer.index,
            tensors=tuple(dict.fromkeys((k.tensor, v.tensor))),
            expected=Quantity(k.rows, "rows of v"),
            actual=Quantity(v.rows, "rows of v"),
            source="tensor shapes",
            consequence=attention_raises(subject, layer),
            fix=f"cut both with the same list of KV heads, to {fewer} rows if the shorter one is right",
        )


def q_kv_indivisible(subject: Subject) -> Iterator[Violation]:
    """The query heads of a layer cannot be shared out evenly among its KV heads.

    What it checks
        Query heads modulo KV heads, by exact remainder: 31 over 7 is not 4:1, although ``31 // 7 == 4``. It stays
        silent where rows are no whole heads (GQA101, GQA102).

    Why it matters
        Grouped-query attention repeats every KV head for the same number of query heads. Floor division hides the
        fault: a check of ``n_q // n_kv == 4`` passes, and the model does not run.

    What you would see
        `The size of tensor a (31) must match the size of tensor b (28) at non-singleton dimension 1` under eager
        attention, `Number of heads in key and value must divide the number of heads in …` under sdpa.

    Fix
        Prune whole KV groups, or the same number of query heads in every group: one of the legal counts in the
        message.

    Known misses
        A legal count whose heads sit next to the wrong KV head; only the parent shows that (GQA601).

    Source
        Ainslie et al. 2023, "GQA": H query heads in G groups of H / G.
    """
    for layer, attention in full_layers(subject):
        n_q, n_kv = attention.n_q_heads, attention.n_kv_heads
        if not n_q or not n_kv or n_q % n_kv == 0 or attention.q is None or attention.k is None:
            continue
        legal = legal_counts(n_q, n_kv)
        nearest = min(legal, key=lambda count: abs(count - n_q))
        yield Violation(
            message=(
                f"{n_q} query heads ({attention.q.rows} rows of {called(attention.q)}) over {n_kv} KV heads "
                f"({attention.k.rows} rows of {called(attention.k)}) "
                f"leave remainder {n_q % n_kv}; {choice(legal)} {'are' if len(legal) > 1 else 'is'} legal"
                f"{by_source(attention.head_dim)}"
            ),
            layer=layer.index,
            tensors=tuple(dict.fromkeys((attention.q.tensor, attention.k.tensor))),
            expected=Quantity(nearest, "query heads"),
            actual=Quantity(n_q, "query heads"),
            source="tensor shapes",
            consequence=attention_raises(subject, layer),
            fix=(
                f"prune again in whole KV groups: {choice(legal)} query heads for {n_kv} KV heads, "
                "o_proj's columns with them"
            ),
            severity=Severity.WARNING if is_guess(attention.head_dim) else None,
        )


def no_heads(subject: Subject) -> Iterator[Violation]:
    """A layer has no query heads or no KV heads left.

    What it checks
        Layers whose q, k or v has no rows, or whose o_proj has no columns; and layers without any attention weights
        where the config declares num_attention_heads 0 for that layer.

    Why it matters
        Removing every head is legal as a plan (attention dropping), but no stock class can run a zero-row projection:
        dropping the block takes a class that skips it.

    What you would see
        `The size of tensor a (12) must match the size of tensor b (0) at non-singleton dimension 1` under eager
        attention; under sdpa the layer may run and add nothing.

    Fix
        Keep at least one KV group per layer, or drop the whole block and say so in the config (num_attention_heads
        0 for that layer) together with code that skips it.

    Known misses
        Heads that are there and all zero (GQA502).

    Source
        Measured on transformers 5.23.
    """
    for layer in subject.geometry.layers:
        attention = layer.attention
        if attention.kind == "dropped":
            yield Violation(
                message=f"no attention weights, and {subject.geometry.config_source} declares 0 query heads here",
                layer=layer.index,
                source=subject.geometry.config_source or "",
                consequence="stock classes build the attention all the same, with random weights",
                fix="ship the modelling code that skips this block with the checkpoint",
                severity=Severity.WARNING,
            )
        elif attention.kind == "full":
            yield from _empty_projections(subject, layer, attention)


def _empty_projections(subject: Subject, layer: Layer, attention: Attention) -> Iterator[Violation]:
    sides = ((attention.q, "query heads"), (attention.k, "KV heads"), (attention.v, "KV heads"))
    empty = [(p, unit) for p, unit in sides if p is not None and p.rows == 0]
    if not empty and attention.o is not None and attention.o.columns == 0:
        empty = [(attention.o, "query heads")]
    if not empty:
        return
    names = " and ".join(called(projection) for projection, _ in empty)
    what = "columns" if empty[0][0] is attention.o else "rows"
    yield Violation(
        message=f"{names} {'have' if len(empty) > 1 else 'has'} 0 {what}: the layer has no {empty[0][1]} left",
        layer=layer.index,
        tensors=tuple(dict.fromkeys(projection.tensor for projection, _ in empty)),
        expected=Quantity(1, empty[0][1]),
        actual=Quantity(0, empty[0][1]),
        source="tensor shapes",
        consequence=attention_raises(subject, layer),
        fix="keep at least one KV group, or drop the whole block and say so in the config",
    )


ATTENTION_RULES: tuple[Rule, ...] = (
    Rule("GQA101", "q-rows", Severity.ERROR, "shapes", q_rows, needs_heads),
    Rule("GQA102", "kv-rows", Severity.ERROR, "shapes", kv_rows, needs_heads),
    Rule("GQA103", "kv-mismatch", Severity.ERROR, "shapes", kv_mismatch, needs_attention),
    Rule("GQA104", "q-kv-indivisible", Severity.ERROR, "shapes", q_kv_indivisible, needs_heads),
    Rule("GQA105", "ratio-drift", Severity.ERROR, "shapes", ratio_drift, needs_heads),
    Rule("GQA106", "o-proj-width", Severity.ERROR, "shapes", o_proj_width, needs_attention),
    Rule("GQA107", "attention-hidden", Severity.ERROR, "shapes", attention_hidden, needs_attention),
    Rule("GQA108", "attention-bias", Severity.ERROR, "shapes", attention_bias, needs_attention),
    Rule("GQA109", "qk-norm-width", Severity.ERROR, "shapes", qk_norm_width, needs_attention),
    Rule("GQA110", "no-heads", Severity.ERROR, "shapes", no_heads, needs_attention),
    Rule("GQA111", "head-dim-ambiguous", Severity.WARNING, "shapes", head_dim_ambiguous, needs_attention),
)
"""GQA101 to GQA111."""
