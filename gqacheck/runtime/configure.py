"""From what a checkpoint says of itself to a config of the stock transformers class that matches what is stored."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from gqacheck.checkpoint import Checkpoint, Plain
from gqacheck.errors import GqacheckError
from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.families import OWN_TYPE


class CannotRun(GqacheckError):
    """The checkpoint cannot be rebuilt or run; ``stage`` is ``rebuild``, ``tokenizer`` or ``forward``.

    ``supported`` is False when the file is not at fault but the rebuild ends there: a family without a stock class,
    packed weights, no config, shapes that the stock class cannot hold.
    """

    def __init__(self, message: str, *, stage: str = "rebuild", supported: bool = True) -> None:
        super().__init__(message)
        self.stage = stage
        self.supported = supported


# Bookkeeping of the library that wrote the config: nothing a forward pass reads.
_BOOKKEEPING = frozenset(
    (
        "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "finetuning_task", "gqacheck_layers",
        "gqacheck_padded", "id2label", "label2id", "is_decoder", "is_encoder_decoder", "model_type", "name_or_path",
        "num_labels", "output_attentions", "output_hidden_states", "per_layer_config", "prefix", "problem_type",
        "pruned_heads", "quantization_config", "return_dict", "task_specific_params", "tf_legacy_loss",
        "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "pretraining_tp",
        "cross_attention_hidden_size", "add_cross_attention", "tie_encoder_decoder", "decoder_start_token_id",
        "sep_token_id", "attn_implementation", "experts_implementation", "use_kernels", "drop_attn_list",
        "drop_mlp_list",
    )
)  # fmt: skip
_MAX_LAYERS = 10_000
_MAX_REPEATS = 4_096
_MEASURED_REPEATS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
_EXPERT_COUNTS = ("num_local_experts", "num_experts")
_QUERY_HEADS = ("num_attention_heads",)
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")


def config_class(checkpoint: Checkpoint, geometry: Geometry) -> tuple[type[Any], list[str]]:
    """The stock config class for this checkpoint, with notes on how it was chosen.

    Raises:
        CannotRun: the installed transformers has no class for the family.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    stated = geometry.config.get("model_type")
    if isinstance(stated, str) and stated.startswith(OWN_TYPE):
        stated = None  # an export of ours: the family says which class it is made of
    pickled = (checkpoint.config.class_name or "").rpartition(".")[2] if checkpoint.config else ""
    named = [stated] if isinstance(stated, str) else []
    named += [model_type for model_type, name in CONFIG_MAPPING_NAMES.items() if name == pickled]
    known = () if geometry.family.generic else geometry.family.model_types
    for model_type in (*named, *known):
        if model_type in CONFIG_MAPPING_NAMES and model_type in CAUSAL:
            notes = []
            if isinstance(stated, str) and model_type != stated:
                notes.append(f"transformers has no causal model of model_type {stated}: built as {model_type}")
            return CONFIG_MAPPING[model_type], notes
    name = stated if isinstance(stated, str) else geometry.family.name
    raise CannotRun(
        f"transformers {transformers.__version__} has no stock class for {name}: it is checked statically only",
        supported=False,
    )


def build_configs(checkpoint: Checkpoint, geometry: Geometry, cls: type[Any]) -> Iterator[Any]:
    """Configs of class ``cls`` to try in turn, built with different head counts.

    A config class may refuse the measured head counts (Llama: hidden % heads) and a model class may derive head_dim
    from them; the modules are brought to their measured sizes afterwards, so any counts that give the right
    head_dim will do.

    Raises:
        CannotRun: none was accepted; the message is the first refusal.
    """
    values = measured_values(geometry, cls)
    head_dim, hidden = _head_dim(geometry), values["hidden_size"]
    refusal: Exception | None = None
    tried: set[tuple[int, int]] = set()
    accepted = False
    for heads in _head_candidates(geometry, hidden, head_dim):
        if heads in tried:
            continue
        tried.add(heads)
        trial = dict(values)
        trial.update(dict.fromkeys(_QUERY_HEADS, heads[0]))
        trial.update({key: heads[1] for key in _KV_HEADS if key in known_keys(cls)})
        try:
            config = cls(**trial)
        except Exception as error:  # config classes raise whatever they like; the sentence goes to the user
            refusal = refusal or error
            continue
        accepted = True
        yield config
    if not accepted and refusal is not None:
        raise CannotRun(f"{cls.__name__} refuses the checkpoint's config: {one_line(refusal)}") from refusal


def measured_values(geometry: Geometry, cls: type[Any]) -> dict[str, Any]:
    """The config's values for ``cls`` with what does not depend on single layers as measured; head counts as stated.

    Raises:
        CannotRun: no class can hold what is measured, or nothing says which entries of a per-layer list were kept.
    """
    values = _sizes(geometry, cls, _clean(geometry.config))
    values |= _per_layer(geometry, cls, values)
    head_dim = _head_dim(geometry)
    if head_dim is not None and not isinstance(getattr(cls, "head_dim", None), property):
        values["head_dim"] = head_dim
    return values


def _clean(config: Mapping[str, Plain]) -> dict[str, Any]:
    """The config's values without private keys and bookkeeping, as mutable plain data.

    Raises:
        CannotRun: a count of layers or experts that is not measured, and that no model has, would be built.
    """
    for key, value in config.items():
        repeats = key not in _MEASURED_REPEATS and any(word in key for word in ("layers", "blocks", "experts"))
        if repeats and isinstance(value, int) and value > _MAX_REPEATS:
            raise CannotRun(
                f"the config says {key}={value}, more than {_MAX_REPEATS}: it is not built", supported=False
            )
    return {
        key: plain_copy(value)
        for key, value in config.items()
        if not key.startswith("_") and key not in _BOOKKEEPING and not _is_section(key, value)
    }


def _is_section(key: str, value: Plain) -> bool:
    """Configs of other parts of a multimodal model."""
    return isinstance(value, Mapping) and key.endswith("_config")


def plain_copy(value: Plain) -> Any:
    """The value as mutable dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_copy(item) for item in value]
    return value


def _sizes(geometry: Geometry, cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    if geometry.hidden_size is None or geometry.embedding is None:
        raise CannotRun("the file holds no token embedding, so there is nothing to run")
    keys = known_keys(cls)
    values["hidden_size"] = geometry.hidden_size.value
    values["vocab_size"] = geometry.embedding.rows
    for key in ("pad_token_id", "bos_token_id"):
        token = values.get(key)
        if isinstance(token, int) and not 0 <= token < geometry.embedding.rows:
            values[key] = None  # an id outside the table only matters to nn.Embedding's padding_idx, which raises
    experts = {layer.mlp.n_experts_stored for layer in geometry.layers if layer.mlp.kind == "moe"}
    if len(experts) > 1:
        raise CannotRun(
            f"layers hold different numbers of experts ({_listed(experts)}): such a model is not rebuilt",
            supported=False,
        )
    for key in _EXPERT_COUNTS:
        if experts and key in keys:
            values[key] = experts.copy().pop()
    rope = values.get("rope_scaling")
    if isinstance(rope, dict) and not rope:
        del values["rope_scaling"]
    return values


def _per_layer(geometry: Geometry, cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Layer count, and every per-layer list cut to the layers that are stored."""
    n = geometry.n_layers
    keys = known_keys(cls)
    changed: dict[str, Any] = {}
    if any(layer.attention.kind == "linear" for layer in geometry.layers):
        kinds = {"full": "full_attention", "linear": "linear_attention"}
        changed["layer_types"] = [kinds.get(layer.attention.kind, "full_attention") for layer in geometry.layers]
    if "mlp_only_layers" in keys:
        dense = [position for position, layer in enumerate(geometry.layers) if layer.mlp.kind != "moe"]
        changed |= {"mlp_only_layers": dense, "decoder_sparse_step": 1}
    stated = values.get("num_hidden_layers")
    kept = original_indices(geometry)
    whole = max(stated if isinstance(stated, int) else n, max(kept, default=0) + 1)
    full = values | {"num_hidden_layers": whole}
    for key in _PER_LAYER_LISTS:
        entries = full.get(key)
        if entries is None and key in keys and whole != n and whole <= _MAX_LAYERS:
            entries = _derived_list(cls, full, key)  # classes derive it from the *original* number of layers
        if isinstance(entries, list) and key not in changed:
            changed[key] = _select(key, entries, kept, geometry)
    changed["num_hidden_layers"] = n
    return changed


def original_indices(geometry: Geometry) -> list[int]:
    """Which layer of the unpruned model each stored one was: by name, or by the layer_idx its module still carries."""
    named = [layer.index for layer in geometry.layers]
    if named != list(range(len(named))):
        return named
    carried = [_attribute(layer, "layer_idx") for layer in geometry.layers]
    numbers = [index for index in carried if isinstance(index, int)]
    if len(numbers) == len(named) and all(a < b for a, b in pairwise(numbers)):
        return numbers
    return named


def _select(key: str, entries: list[Any], kept: list[int], geometry: Geometry) -> list[Any]:
    n = len(kept)
    if len(entries) == n:
        return entries
    told = [_layer_type(layer) for layer in geometry.layers]
    if key == "layer_types" and all(told):
        return told
    if len(entries) > max(kept) and kept != list(range(n)):
        return [entries[index] for index in kept]
    if len(set(map(str, entries))) == 1:
        return entries[:1] * n
    raise CannotRun(
        f"the config's {key} has {len(entries)} entries for {n} stored layers, and nothing says which were kept; "
        f"cut {key} to {n} entries",
        supported=False,
    )


def _derived_list(cls: type[Any], values: dict[str, Any], key: str) -> Any:
    try:
        made = getattr(cls(**values), key, None)
    except Exception:  # a refusal is told where the real config is built
        return None
    return list(made) if isinstance(made, list | tuple) else None


def _layer_type(layer: Layer) -> str | None:
    for name in ("layer_type", "attention_type"):
        value = _attribute(layer, name)
        if isinstance(value, str):
            return value
    sliding = _attribute(layer, "is_sliding")
    if isinstance(sliding, bool):
        return "sliding_attention" if sliding else "full_attention"
    return None


def _attribute(layer: Layer, name: str) -> Plain:
    for module in (layer.attention.module, layer.module):
        if module is not None and name in module.attributes:
            return module.attributes[name]
    return None


def _head_dim(geometry: Geometry) -> int | None:
    dims = {layer.attention.head_dim.value for layer in _full(geometry) if layer.attention.head_dim is not None}
    if len(dims) > 1:
        raise CannotRun(
            f"layers have different head_dim ({_listed(dims)}): one rotary embedding cannot serve them", supported=False
        )
    return dims.pop() if dims else None


def _head_candidates(geometry: Geometry, hidden: int, head_dim: int | None) -> Iterator[tuple[int, int]]:
    counts = {(layer.attention.n_q_heads, layer.attention.n_kv_heads) for layer in _full(geometry)}
    if len(counts) == 1:
        n_q, n_kv = counts.pop()
        if n_q and n_kv:
            yield n_q, n_kv
    stated = geometry.config.get("num_attention_heads")
    stated_kv = geometry.config.get("num_key_value_heads", geometry.config.get("num_kv_heads"))
    if isinstance(stated, int) and stated > 0:
        yield stated, stated_kv if isinstance(stated_kv, int) and stated_kv > 0 else stated
    if head_dim:
        yield max(hidden // head_dim, 1), max(hidden // head_dim, 1)
    yield 1, 1


def _full(geometry: Geometry) -> list[Layer]:
    return [layer for layer in geometry.layers if layer.attention.kind == "full"]


def known_keys(cls: type[Any]) -> frozenset[str]:
    """The names that a config class takes."""
    fields = getattr(cls, "__dataclass_fields__", None) or inspect.signature(cls.__init__).parameters
    return frozenset(fields) | frozenset(getattr(cls, "attribute_map", ()))


def _listed(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values, key=str)))


def one_line(error: BaseException) -> str:
    """The first line that says something, without trailing punctuation, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # strict config classes say "Validation error for field …:" first and the reason below
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines[0] if lines else type(error).__name__)
    if isinstance(error, KeyError):
        text = f"unknown name {text}"
    return text.rstrip(".")[:200]
