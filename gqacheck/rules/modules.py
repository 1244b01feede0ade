"""GQA203 to GQA207: what attention and MLP modules of a pickle say of themselves, against what they hold.

An attribute that a class does not have is absent, never stale: nothing is expected of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gqacheck.checkpoint import ModuleInfo
from gqacheck.geometry.config import config_number
from gqacheck.geometry.facts import Attention, Layer, Projection, Subject
from gqacheck.rules.forward import PADDED, reshape_error, size_error, view_error
from gqacheck.rules.heads import counted, full_layers, q_width, rows_in_heads, whole_number
from gqacheck.rules.layouts import (
    is_pruners_own,
    is_since_4_48,
    kv_heads_attribute,
    q_heads_attribute,
    reads_head_counts,
    reshapes_to_hidden,
)
from gqacheck.rules.linears import in_features_stale, needs_dense_modules, needs_modules, out_features_stale
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable

_WIDTHS = ("intermediate_size", "ffn_dim")
_SHOWN_NUMBERS = 8


def head_count_stale(subject: Subject) -> Iterator[Violation]:
    """num_heads or num_key_value_heads on an attention module is not what its weights hold.

    What it checks
        The head counts among the attributes of every attention module against rows / head_dim of q_proj and k_proj.
        In LLM-Pruner's own Llama class num_heads stands for the KV heads as well. Rows that are no whole heads are
        GQA101's and GQA102's.

    Why it matters
        Until transformers 4.47 attention views its projections by these numbers. Classes since 4.48 leave the count
        to the rows; what a pruner wrote there is then read by its own code alone, and the finding is a warning.

    What you would see
        `shape '[1, 4, 12, 8]' is invalid for input of size 288`.

    Fix
        After cutting a layer set num_heads, num_key_value_heads and num_key_value_groups on its attention module.

    Known misses
        Classes that keep their counts in a config object instead (Phi-3 in transformers 5).

    Source
        LlamaAttention of transformers 4.33 to 5.23; texts measured on 4.33, 4.36 and 4.40.
    """
    for layer, attention in full_layers(subject):
        module, size = attention.module, attention.head_dim
        if module is None or size is None:
            continue
        q_key, kv_key = q_heads_attribute(module), kv_heads_attribute(module)
        if q_key is not None and attention.q is not None and attention.q_unit:
            yield from _stale_count(layer, module, q_key, attention.n_q_heads, attention.q, attention.q_unit)
        if kv_key is not None and attention.k is not None:
            yield from _stale_count(layer, module, kv_key, attention.n_kv_heads, attention.k, size.value)


def _stale_count(
    layer: Layer, module: ModuleInfo, key: str, measured: int | None, projection: Projection, unit: int
) -> Iterator[Violation]:
    stated = whole_number(module, key)
    if stated is None or measured is None or stated == measured:
        return
    noun = "query head" if projection.role == "q" else "KV head"
    reads = reads_head_counts(module)
    if projection.derived is not None:
        consequence = "the fused tensor is cut by this number: at the wrong rows, or with an error"
    elif reads:
        consequence = f"the forward pass raises `{view_error(stated, unit, projection.rows)}` (for 4 tokens)"
    else:
        consequence = "transformers 4.48 and later do not read it; code that does gets the old count"
    own = ", which counts the KV heads too in this class," if is_pruners_own(module) and noun == "KV head" else ""
    yield Violation(
        message=(
            f"attribute {key}={stated}{own} on the attention module, but {projection.name} has "
            f"{rows_in_heads(projection.rows, unit, noun)}"
        ),
        layer=layer.index,
        tensors=(projection.tensor,),
        expected=Quantity(measured, f"{noun}s"),
        actual=Quantity(stated, f"{noun}s"),
        source="module attributes",
        consequence=consequence,
        fix=f"set {key}={measured} on this layer's attention module",
        severity=Severity.ERROR if reads else Severity.WARNING,
    )


def group_count_stale(subject: Subject) -> Iterator[Violation]:
    """num_key_value_groups on an attention module is not the ratio of its heads.

    What it checks
        num_key_value_groups against query heads / KV heads as measured, where they divide (else GQA104 speaks).

    Why it matters
        It is how often each KV head is repeated. It is the one head count that transformers 5 still reads, and the
        one that cutting tools forget.

    What you would see
        `The size of tensor a (9) must match the size of tensor b (12) at non-singleton dimension 1` under eager
        attention. sdpa in transformers 5 runs without a word, until a batch is padded.

    Fix
        `attention.num_key_value_groups = n_q_heads // n_kv_heads` after every cut.

    Known misses
        Classes without this attribute.

    Source
        repeat_kv in transformers; texts and the silence measured on 4.33, 4.40 and 5.23.
    """
    for layer, attention in full_layers(subject):
        module, n_q, n_kv = attention.module, attention.n_q_heads, attention.n_kv_heads
        stated = whole_number(module, "num_key_value_groups")
        if module is None or stated is None or not n_q or not n_kv or n_q % n_kv or stated == n_q // n_kv:
            continue
        yield Violation(
            message=(
                f"attribute num_key_value_groups={stated} on the attention module, but {n_q} query heads over "
                f"{counted(n_kv, 'KV head')} are {n_q // n_kv}:1"
            ),
            layer=layer.index,
            tensors=tuple(dict.fromkeys(p.tensor for p in (attention.q, attention.k) if p is not None)),
            expected=Quantity(n_q // n_kv, "query heads per KV head"),
            actual=Quantity(stated, "query heads per KV head"),
            source="module attributes",
            consequence=_wrong_groups(module, n_q, n_kv * stated, stated),
            fix=f"set num_key_value_groups={n_q // n_kv} on this layer's attention module",
        )


def _wrong_groups(module: ModuleInfo, n_q: int, repeated: int, stated: int) -> str:
    error = size_error(n_q, repeated, 1)
    if stated == 1 or reads_head_counts(module):
        return f"the forward pass raises `{error}`"
    return f"eager attention raises `{error}`; {PADDED}"


def attention_size_stale(subject: Subject) -> Iterator[Violation]:
    """hidden_size on an attention module is not what its query heads produce, and its class reshapes to it.

    What it checks
        The attention module's own hidden_size against query heads x head_dim, where the class that wrote the pickle
        reshapes its output to that number. An error when the layout proves such a class: Qwen2, Phi, Cohere, StableLM
        and others as long as they have no `scaling`; Llama and Mistral whose rotary module still holds cos and sin.
        A warning where it may be one. Never compared with the config's hidden_size, which is another thing.

    Why it matters
        In these versions "hidden_size" on the attention stood for two things at once: the width of the residual
        stream and that of all heads together. Cutting heads parts them.

    What you would see
        `shape '[1, 4, 96]' is invalid for input of size 288`, right before o_proj.

    Fix
        Set the attention module's hidden_size to num_heads x head_dim (not the layer's or the model's), or rebuild
        the model under a current transformers with gqacheck.load_model.

    Known misses
        Classes of a model's own code. Llama pickles of 4.41, which cannot be told from those of 4.42 (a warning).

    Source
        attn_output.reshape(batch, tokens, self.hidden_size) in transformers: Llama and Mistral to 4.41, Qwen2 to 4.47;
        measured on 4.33, 4.36 and 4.40.
    """
    for layer, attention in full_layers(subject):
        module, width = attention.module, q_width(attention)
        stated = whole_number(module, "hidden_size")
        if module is None or stated is None or not width or stated == width or attention.n_q_heads is None:
            continue
        reshapes = reshapes_to_hidden(subject.checkpoint, module)
        if reshapes is False:
            continue
        yield _stale_size(layer, attention, module, stated, width, proven=reshapes is True)


def _stale_size(
    layer: Layer, attention: Attention, module: ModuleInfo, stated: int, width: int, *, proven: bool
) -> Violation:
    size = attention.head_dim.value if attention.head_dim else 0
    error = f"`{reshape_error(stated, width)}` (for 4 tokens)"
    return Violation(
        message=(
            f"attribute hidden_size={stated} on the attention module ({printable(module.short_class, 60)}), but its "
            f"{counted(width // size, 'query head')} of {size} give {width}"
        ),
        layer=layer.index,
        tensors=(attention.q.tensor,) if attention.q is not None else (),
        expected=Quantity(width, "features"),
        actual=Quantity(stated, "features"),
        source="module attributes",
        consequence=(
            f"the forward pass raises {error}"
            if proven
            else f"versions of this class that reshape to it raise {error}; which version wrote this cannot be told"
        ),
        fix=f"set hidden_size={width} on this layer's attention module only",
        severity=Severity.ERROR if proven else Severity.WARNING,
    )


def mlp_size_stale(subject: Subject) -> Iterator[Violation]:
    """intermediate_size on an MLP module is not the width of its projections.

    What it checks
        intermediate_size (ffn_dim in Mixtral's old class) of every MLP and expert module against the rows of its up
        projection.

    Why it matters
        No forward pass reads it; whoever rebuilds the layer from it, or prunes a second time by it, gets the old
        width. LLM-Pruner leaves it behind.

    What you would see
        Nothing until then.

    Fix
        `mlp.intermediate_size = mlp.up_proj.weight.shape[0]` after cutting.

    Known misses
        Classes that keep the width under another name, and stacked experts.

    Source
        LlamaMLP of transformers 4.33, 4.36 and 4.40: silent with a stale value.
    """
    for layer in subject.geometry.layers:
        mlp = layer.mlp
        pairs = [(mlp.module, mlp.up or mlp.gate)]
        pairs += [(e.module, e.up or e.gate) for e in mlp.experts if e.index != "stacked"]
        for module, projection in pairs:
            key = next((key for key in _WIDTHS if whole_number(module, key) is not None), None)
            stated = whole_number(module, key) if key is not None else None
            if projection is None or stated is None or stated == projection.rows:
                continue
            yield Violation(
                message=f"attribute {key}={stated} on the MLP module, but {_generic(projection.name)} has "
                f"{projection.rows} rows",
                layer=layer.index,
                tensors=(projection.tensor,),
                expected=Quantity(projection.rows, "channels"),
                actual=Quantity(stated, "channels"),
                source="module attributes",
                consequence="nothing raises; code that rebuilds or prunes the layer by it gets the old width",
                fix=f"set {key}={projection.rows} on this layer's MLP module",
            )


def _generic(name: str) -> str:
    """The module's own name, so that the same fault in many experts is one finding."""
    return name.rpartition(".")[2]


def layer_idx_stale(subject: Subject) -> Iterator[Violation]:
    """layer_idx of the attention modules is repeated, or has gaps.

    What it checks
        layer_idx of every attention module (linear attention too): each number once, and, where every layer has one,
        0 to n-1 without a gap.

    Why it matters
        It is the layer's slot in the KV cache. Two layers with one slot append their keys to each other's; a gap
        points past the slots that there are.

    What you would see
        Repeated: garbage without an error under sdpa, `The size of tensor a (8) must match the size of tensor b (4)
        at non-singleton dimension 3` under eager attention. Gaps: `IndexError: list index out of range` in the
        first forward pass that uses a cache.

    Fix
        After dropping layers: `for i, layer in enumerate(model.model.layers): layer.self_attn.layer_idx = i`.

    Known misses
        Numbers that are complete and in another order; pickles of transformers before 4.36, which have none.

    Source
        DynamicCache in transformers 4.36 to 5.23; measured on 4.36, 4.40 and 5.23.
    """
    found: list[tuple[Layer, int]] = []
    for layer in subject.geometry.layers:
        number = whole_number(layer.attention.module, "layer_idx")
        if number is not None:
            found.append((layer, number))
    counts = Counter(number for _, number in found)
    repeated = len(counts) < len(found)
    if not repeated and (len(found) < subject.geometry.n_layers or set(counts) == set(range(len(found)))):
        return
    for position, (layer, number) in enumerate(found):
        if repeated and counts[number] > 1:
            yield _repeated(layer, number, counts[number])
        elif not repeated and number != position:
            yield _gap(subject, layer, sorted(counts))


def _repeated(layer: Layer, number: int, times: int) -> Violation:
    error = size_error(8, 4, 3)
    return Violation(
        message=f"layer_idx={number} stands on {times} attention modules, which makes them share one KV cache slot",
        layer=layer.index,
        expected=Quantity(1, "modules"),
        actual=Quantity(times, "modules"),
        source="module attributes",
        consequence=(
            f"eager attention raises `{error}` (for 4 tokens); sdpa raises nothing and reads the other layer's keys "
            "and values"
        ),
        fix="number the layers anew: layer.self_attn.layer_idx = i for i, layer in enumerate(model.model.layers)",
        severity=Severity.ERROR,
    )


def _gap(subject: Subject, layer: Layer, numbers: list[int]) -> Violation:
    n = len(numbers)
    missing = [number for number in range(n) if number not in set(numbers)]
    shown = ", ".join(map(str, missing[:_SHOWN_NUMBERS])) + (", …" if len(missing) > _SHOWN_NUMBERS else "")
    declared = config_number(subject.geometry.config, "num_hidden_layers")
    module = layer.attention.module
    roomy = declared is not None and numbers[-1] < declared and module is not None and is_since_4_48(module)
    if roomy:
        consequence = f"the cache is made for {declared} layers, so it runs; once the config says {n} it raises "
    else:
        consequence = "with a KV cache the forward pass raises "
    return Violation(
        message=f"layer_idx of {counted(n, 'attention module')} goes up to {numbers[-1]} and leaves out {shown}",
        layer=layer.index,
        expected=Quantity(n - 1, "highest layer_idx"),
        actual=Quantity(numbers[-1], "highest layer_idx"),
        source="module attributes",
        consequence=f"{consequence}`IndexError: list index out of range`",
        fix="number the layers anew: layer.self_attn.layer_idx = i for i, layer in enumerate(model.model.layers)",
        severity=Severity.WARNING,
    )


MODULE_RULES: tuple[Rule, ...] = (
    Rule("GQA201", "out-features-stale", Severity.ERROR, "shapes", out_features_stale, needs_dense_modules),
    Rule("GQA202", "in-features-stale", Severity.ERROR, "shapes", in_features_stale, needs_dense_modules),
    Rule("GQA203", "head-count-stale", Severity.ERROR, "shapes", head_count_stale, needs_dense_modules),
    Rule("GQA204", "group-count-stale", Severity.ERROR, "shapes", group_count_stale, needs_dense_modules),
    Rule("GQA205", "attention-size-stale", Severity.ERROR, "shapes", attention_size_stale, needs_dense_modules),
    Rule("GQA206", "mlp-size-stale", Severity.WARNING, "shapes", mlp_size_stale, needs_dense_modules),
    Rule("GQA207", "layer-idx-stale", Severity.ERROR, "shapes", layer_idx_stale, needs_modules),
)
"""GQA201 to GQA207."""
