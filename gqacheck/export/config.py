"""config.json of the export: what the checkpoint says, every size as measured, and nothing of where it came from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from gqacheck.checkpoint import Plain
from gqacheck.export.facts import Refused
from gqacheck.geometry.config import LAYER_LISTS
from gqacheck.geometry.facts import Geometry, Layer

OF_LAYERS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""What stands in config.json for each layer when layers differ; 0 says that the block is not there."""
_KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")
# What the library keeps in every config and no model reads.
_BOOKKEEPING = frozenset(
    (
        "_name_or_path", "add_cross_attention", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task",
        "id2label", "is_decoder", "is_encoder_decoder", "label2id", "name_or_path", "num_labels", "output_attentions",
        "output_hidden_states", "per_layer_config", "prefix", "problem_type", "pruned_heads", "quantization_config",
        "return_dict", "sep_token_id", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder",
        "tokenizer_class", "torchscript", "torch_dtype", "transformers_version", "use_bfloat16",
    )
)  # fmt: skip
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LOCAL = re.compile(r"[/\\~]|[A-Za-z]:[\\/]|file:|\.{1,2}[/\\]")


def raw_values(geometry: Geometry, cls: type[Any], *, tied: bool, own_code: bool = False) -> dict[str, Any]:
    """The values for a config of class ``cls``: as the checkpoint says, with sizes as measured.

    Where layers differ, the largest: whatever is laid out by one number must have room for all. A switch for biases is
    on when one of them is stored; own_code: when all are, since single ones are listed by name there.

    Raises:
        CannotRun: no class can hold what is measured.
    """
    from gqacheck.runtime.configure import known_keys, measured_values
    from gqacheck.runtime.settle import bias_switches, shared_experts, widths_by_key

    fields = known_keys(cls)
    stated = measured_values(geometry, cls)
    # what the class reads is for it to judge: its own default in place of it would be made up
    values = {key: value for key, value in stated.items() if key in fields or not _leads_elsewhere(value)}
    for ours, theirs in geometry.family.config_keys.items():
        if theirs in fields and ours not in fields:
            values.pop(ours, None)  # its own word for it says what is measured; ours would still say what was
    full = [layer.attention for layer in geometry.layers if layer.attention.kind == "full"]
    queries = [attention.n_q_heads for attention in full if attention.n_q_heads]
    kv = [attention.n_kv_heads for attention in full if attention.n_kv_heads]
    if queries and kv:
        values["num_attention_heads"] = max(queries)
        values.update({key: max(kv) for key in _KV_COUNTS if key in fields})
    values |= {key: max(widths.values()) for key, widths in widths_by_key(geometry, fields).items()}
    values |= shared_experts(geometry, fields)
    for key, answers in bias_switches(geometry, fields).items():
        values[key] = answers == {True} if own_code else True in answers
    values["tie_word_embeddings"] = tied
    values["model_type"] = cls.model_type
    return values


def without_llama_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a Llama without those that only its class knows."""
    return {key: value for key, value in values.items() if key not in _LLAMA_ONLY}


def layer_lists(geometry: Geometry) -> dict[str, list[int]]:
    """The sizes of every layer; 0 for a block that is not there.

    Raises:
        Refused: a layer has something that these lists cannot say.
    """
    lists: dict[str, list[int]] = {key: [] for key in OF_LAYERS}
    for layer in geometry.layers:
        for key, value in zip(OF_LAYERS, _sizes_of(layer), strict=True):
            lists[key].append(value)
    return lists


def _sizes_of(layer: Layer) -> tuple[int, int, int]:
    a, m = layer.attention, layer.mlp
    heads = (0, 0) if a.kind == "dropped" else (a.n_q_heads, a.n_kv_heads)
    width = 0 if m.kind == "dropped" else m.intermediate_size if m.kind in ("gated", "plain") else None
    if heads[0] is None or heads[1] is None or width is None or a.kind not in ("full", "dropped"):
        raise Refused(f"layer {layer.index} has {a.kind} attention and a {m.kind} MLP")
    return heads[0], heads[1], width


def finished(
    config: Any, *, dtype: str, architecture: str, auto_map: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What is written of a config object: all it says that a model reads, in a fixed order, loadable by others too.

    ``torch_dtype``, ``rope_theta`` and ``rope_scaling`` say again what transformers 5 calls otherwise: 4.x would take
    its own defaults without a word.
    """
    import transformers

    said = {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_") and key not in _BOOKKEEPING and key not in _generation_keys()
    }
    lists = said.pop(LAYER_LISTS, None)
    for key in ("architectures", "auto_map", "dtype", "model_type"):
        said.pop(key, None)
    values: dict[str, Any] = {"architectures": [architecture]} if architecture else {}
    if auto_map:
        values["auto_map"] = dict(auto_map)
    values["model_type"] = config.model_type
    older = _older_names(said)
    values |= {key: said[key] for key in sorted(said.keys() - older.keys()) if not _leads_elsewhere(said[key])}
    if lists is not None:
        values[LAYER_LISTS] = lists
    values |= older
    values |= {"dtype": dtype, "torch_dtype": dtype, "transformers_version": transformers.__version__}
    return values


def _generation_keys() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict()) - {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}


def _leads_elsewhere(value: Any) -> bool:
    """Whether a string is a path of the machine that the checkpoint was made on."""
    return isinstance(value, str) and bool(_LOCAL.match(value) or os.path.sep in value)


def hub_name(values: Mapping[str, Plain]) -> str | None:
    """``_name_or_path`` where it is a name on the hub and not a path of somebody's machine."""
    name = values.get("_name_or_path", values.get("name_or_path"))
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) and not os.path.exists(name) else None


def _older_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """rope settings as transformers 4 spells them."""
    parameters = values.get("rope_parameters")
    if not isinstance(parameters, Mapping):
        return {}
    by_type = {kind: entry for kind, entry in parameters.items() if isinstance(entry, Mapping) and "rope_type" in entry}
    whole = by_type.get("full_attention", parameters if "rope_type" in parameters else None)
    found: dict[str, Any] = {}
    if whole is not None and "rope_theta" in whole:
        found["rope_theta"] = whole["rope_theta"]
        scaling = {key: value for key, value in whole.items() if key not in ("rope_theta", "partial_rotary_factor")}
        if whole.get("rope_type") != "default":
            found["rope_scaling"] = scaling
        if "partial_rotary_factor" in whole:
            found["partial_rotary_factor"] = whole["partial_rotary_factor"]
    sliding = by_type.get("sliding_attention")
    if sliding is not None and "rope_theta" in sliding:
        found["rope_local_base_freq"] = sliding["rope_theta"]
    return found


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's own config without the library's bookkeeping and without paths of another machine."""
    return {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and key not in _BOOKKEEPING and not _leads_elsewhere(value)
    }
