"""GQA406 and GQA407: what the family's own config class makes of these numbers."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.config import config_number, is_true
from gqacheck.geometry.facts import Layer, Subject
from gqacheck.rules.blocks import inside, short
from gqacheck.rules.built import computes_head_dim
from gqacheck.rules.config import trusted_head_dim
from gqacheck.rules.needs import needs_dense_weights_and_config
from gqacheck.rules.predict import once_saved, refused
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container
from gqacheck.rules.spelling import config_name, spelled

_CLASSES = {
    "llama": "LlamaConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "internlm3": "InternLM3Config",
    "arcee": "ArceeConfig",
}
_PADDING_STEPS = 4096


def config_rejects(subject: Subject) -> Iterator[Violation]:
    """The family's config class refuses the numbers that these weights need.

    What it checks
        For families whose config class insists on hidden_size % num_attention_heads = 0 (Llama, Gemma-2, Gemma-3 and
        relatives, transformers 5), or whose attention class does (Falcon, StableLM, Qwen2-VL): the measured head count
        when all layers agree on one, and the config's. A folder with modelling code of its own is not judged.

    Why it matters
        A perfectly consistent cut from 32 to 24 query heads (4096 % 24 = 16) cannot be written down as a Llama any
        more, also not with head_dim stated.

    What you would see
        `Class validation error for validator 'validate_architecture': ValueError: The hidden size (96) is not a
        multiple of the number of attention heads (9).` from AutoConfig, before any weight is read.

    Fix
        A Llama without biases can be written as model_type mistral with sliding_window null: the same computation
        (difference 0.0). Others: keep a head count that divides the hidden size, or pad with heads of zeros to one.

    Known misses
        Other refusals: unknown layer types, odd head_dim. Classes before transformers 5 accept some of these numbers.

    Source
        `validate_architecture` of LlamaConfig, Gemma2Config, Gemma3TextConfig in transformers 5.23, measured.
    """
    geometry = subject.geometry
    if subject.checkpoint.own_code or not (geometry.family.rejects_indivisible_hidden or computes_head_dim(subject)):
        return
    hidden = geometry.hidden_size.value if geometry.hidden_size else None
    stated = config_number(geometry.config, "num_attention_heads")
    measured = _uniform_heads(subject)
    refused = [heads for heads in (measured, stated) if heads and hidden and heads > 0 and hidden % heads]
    if not hidden or hidden < 0 or not refused:
        return
    heads = refused[0]
    name, error = _refusal(subject, hidden, heads)
    key = spelled(subject, "num_attention_heads")
    if heads == stated:
        says, later = f"{config_name(subject)} {key} is {heads} and hidden_size {hidden}", ""
    else:
        says, later = f"these weights need {key} {heads} at hidden_size {hidden}", f"with {key} {heads}, "
    if subject.container is Container.MODULE:
        later = f"the pickle runs from its modules; saved as a folder with {key} {heads}, "
    yield Violation(
        message=f"{says}, which {name} refuses: {hidden} % {heads} = {hidden % heads}",
        expected=Quantity(0, f"remainder of hidden_size / {key}"),
        actual=Quantity(hidden % heads, f"remainder of hidden_size / {key}"),
        source=f"tensor shapes, {name} of transformers 5",
        consequence=later + error,
        fix=_way_out(subject, hidden, heads) if measured in (None, heads) else f"set {key} to {measured}, as measured",
        severity=by_container(subject, folder=Severity.ERROR, module=Severity.WARNING),
    )


def _refusal(subject: Subject, hidden: int, heads: int) -> tuple[str, str]:
    """Who refuses, and the error."""
    family = subject.geometry.family.name
    if computes_head_dim(subject):
        numbers = f"(got `hidden_size`: {hidden} and `num_heads`: {heads})"
        return f"the {family} attention class", f"ValueError: hidden_size must be divisible by num_heads {numbers}"
    error = f"ValueError: The hidden size ({hidden}) is not a multiple of the number of attention heads ({heads})"
    return _CLASSES.get(family, f"the {family} config class"), f"{error}, before any weight is read"


def _uniform_heads(subject: Subject) -> int | None:
    """The query heads that all layers agree on, as far as they can stay: whole KV groups, in weights that are dense."""
    if subject.checkpoint.quantization is not None:
        return None
    blocks = [layer.attention for layer in subject.geometry.layers if layer.attention.kind == "full"]
    counts = {(block.n_q_heads, block.n_kv_heads) if trusted_head_dim(block) else (None, None) for block in blocks}
    heads, kv = counts.pop() if len(counts) == 1 else (None, None)
    return None if heads and kv and heads % kv else heads


def _way_out(subject: Subject, hidden: int, heads: int) -> str:
    config = subject.geometry.config
    padded = _padded(subject, hidden, heads)
    pad = f"pad with heads of zeros to {padded}" if padded else "keep a head count that divides it"
    biased = is_true(config, "attention_bias", False) or is_true(config, "mlp_bias", False)
    if subject.geometry.family.name != "llama" or biased:
        return f"{pad}, or keep a head count that divides {hidden}" if padded else pad
    return (
        'write the folder as model_type "mistral" with sliding_window null and architectures ["MistralForCausalLM"], '
        f"which computes the same; or {pad}"
    )


def _padded(subject: Subject, hidden: int, heads: int) -> str:
    """The next head counts that divide ``hidden`` at the same ratio, "" when there is none near."""
    layers = [layer.attention for layer in subject.geometry.layers if layer.attention.kind == "full"]
    kv = layers[0].n_kv_heads if layers else None
    group = heads // kv if kv and heads % kv == 0 else 1
    for count in range(heads + 1, min(hidden, heads + _PADDING_STEPS) + 1):
        if hidden % count == 0 and count % group == 0:
            return f"{count}:{count // group}" if group > 1 or kv == heads else str(count)
    return ""


def head_dim_implicit(subject: Subject) -> Iterator[Violation]:
    """The config leaves head_dim out, and what its class takes instead is not what the heads are.

    What it checks
        When the config states no head_dim: hidden_size // num_attention_heads (or the number the family's class takes,
        such as Gemma's 256) against the head_dim measured. Also for the few classes that compute it and ignore one
        that is stated (Falcon, StableLM, Qwen2-VL). A stale head count that still gives the right head_dim is silent
        here; GQA403 names the head count.

    Why it matters
        Head pruning lowers num_attention_heads, and hidden_size // num_attention_heads grows: 96 // 9 = 10 for heads
        of 8. Channel pruning lowers hidden_size, and it shrinks: 72 // 12 = 6.

    What you would see
        Folder: `MISMATCH … Reinit due to size mismatch - ckpt: torch.Size([72, 96]) vs model:torch.Size([90, 96])`. A
        whole-module pickle whose attention modules carry the right head_dim runs until it is saved as a folder.

    Fix
        State head_dim in the config.

    Known misses
        Configs whose own code computes head_dim in another way are not judged.

    Source
        `head_dim = getattr(config, "head_dim", hidden_size // num_attention_heads)` in the attention of transformers'
        classes; loading report of 5.23, measured.
    """
    implied, how = _implied(subject)
    if implied is None:
        return
    layers = [layer for layer in subject.geometry.layers if layer.attention.kind == "full"]
    found = [(layer, value) for layer in layers if (value := trusted_head_dim(layer.attention)) is not None]
    wrong = [(layer, value) for layer, value in found if value != implied]
    if not wrong:
        return
    everywhere = len(wrong) == len(layers) and len({value for _, value in wrong}) == 1
    for layer, value in wrong[:1] if everywhere else wrong:
        source = layer.attention.head_dim.source if layer.attention.head_dim else ""
        yield Violation(
            message=f"{how}, but heads are {value} wide ({source})",
            layer=None if everywhere else layer.index,
            tensors=() if layer.attention.q is None else (layer.attention.q.tensor,),
            expected=Quantity(value, "head_dim"),
            actual=Quantity(implied, "head_dim"),
            source=f"{config_name(subject)}, {source}",
            consequence=_implied_consequence(subject, layer, implied),
            fix=_implied_fix(subject, value),
            severity=_implied_severity(subject, found),
        )


def needs_stated_heads(subject: Subject) -> tuple[str, str] | None:
    """Dense weights, and a config; latent attention has no head_dim of this kind."""
    if subject.geometry.family.attention == "mla":
        return "kv-heads", "latent attention (MLA) has no head_dim of this kind"
    return needs_dense_weights_and_config(subject)


def _implied(subject: Subject) -> tuple[int | None, str]:
    """The head_dim that the class takes, with the words for it; None when the config states one that it reads."""
    config, family, source = subject.geometry.config, subject.geometry.family, config_name(subject)
    stated = config_number(config, "head_dim")
    if subject.checkpoint.own_code or (stated is not None and not computes_head_dim(subject)):
        return None, ""
    hidden, heads = config_number(config, "hidden_size"), config_number(config, "num_attention_heads")
    lacks = f"{source} has no head_dim"
    if family.default_head_dim is not None and not computes_head_dim(subject):
        return family.default_head_dim, f"{lacks} and the {family.name} class takes {family.default_head_dim}"
    if hidden is None or heads is None or hidden <= 0 or heads <= 0:
        return None, ""
    implied = f"hidden_size {hidden} // num_attention_heads {heads} = {hidden // heads}"
    if stated is not None:
        return hidden // heads, f"the {family.name} class ignores head_dim and takes {implied}"
    return hidden // heads, f"{lacks}, so {implied} is taken"


def _implied_consequence(subject: Subject, layer: Layer, implied: int) -> str:
    q, unit, head_dim = layer.attention.q, layer.attention.q_unit, layer.attention.head_dim
    heads = config_number(subject.geometry.config, "num_attention_heads")
    if q is None or q.derived or not heads or heads < 0 or not unit or head_dim is None:
        name = short(q) if q is not None else "the attention"
        return f"loading builds {name} for heads of {implied} and reports a size mismatch"
    built = heads * implied * (unit // head_dim.value)
    text = refused(subject, inside(layer, q.tensor), (q.rows, q.columns), (built, q.columns))
    hidden = config_number(subject.geometry.config, "hidden_size")
    refuses = subject.geometry.family.rejects_indivisible_hidden or computes_head_dim(subject)
    if refuses and hidden is not None and hidden % heads:
        text = f"the class refuses {hidden} % {heads} first (GQA406); past that, {text}"
    return once_saved(subject, text)


def _implied_fix(subject: Subject, value: int) -> str:
    if computes_head_dim(subject):
        return f"keep hidden_size / num_attention_heads at {value}, or load it with gqacheck.load_model"
    return f"state head_dim {value} in {config_name(subject)}"


def _implied_severity(subject: Subject, found: list[tuple[Layer, int]]) -> Severity:
    """A warning where every attention module of a pickle carries the right number itself."""
    if subject.container is not Container.MODULE:
        return Severity.ERROR
    modules = ((layer.attention.module, value) for layer, value in found)
    carried = all(module is not None and module.attributes.get("head_dim") == value for module, value in modules)
    return Severity.WARNING if carried else Severity.ERROR
