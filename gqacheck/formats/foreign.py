"""Checkpoints of other tools, told by the names of their tensors, so that no rule accuses what it was not made for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from gqacheck.checkpoint import TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.model_files import Listing, read_json
from gqacheck.text import printable

_META = (
    "convert it with transformers' script (in its source tree; wheels from 5.0 leave it out): python "
    "src/transformers/models/llama/convert_llama_weights_to_hf.py --input_dir FOLDER --model_size SIZE --output_dir OUT"
)
_MISTRAL = (
    "convert it with transformers' script (in its source tree; wheels from 5.0 leave it out): python "
    "src/transformers/models/mistral/convert_mistral_weights_to_hf.py --input_dir FOLDER --model_size SIZE "
    "--output_dir OUT"
)

_WRAPPERS = r"(?:module\.|_orig_mod\.)*"  # no others: a vision tower inside a model may have names like these

LAYOUTS: tuple[tuple[str, str, str, str], ...] = (
    (
        ".attention.wq.",
        _WRAPPERS + r"layers\.\d+\.attention\.wq\.(?:weight|bias)",
        "a checkpoint in Meta's own layout (consolidated, layers.N.attention.wq)",
        _META,
    ),
    (
        ".attn.q_proj.",
        _WRAPPERS + r"(?:decoder\.)?layers\.\d+\.attn\.q_proj\.weight",
        "a torchtune checkpoint (layers.N.attn.q_proj)",
        "save it with torchtune's FullModelHFCheckpointer, which writes the Hugging Face layout",
    ),
    (
        ".attn.",
        _WRAPPERS + r"transformer\.h\.\d+\.attn\.(?:attn|qkv)(?:\.linear)?\.weight",
        "a LitGPT checkpoint (lit_model.pth, transformer.h.N.attn.qkv)",
        "convert it: litgpt convert_from_litgpt FOLDER OUT",
    ),
    (
        ".linear_qkv.",
        r"(?:.*\.)?(?:decoder|encoder)\.layers\.\d+\.self_attention\.linear_qkv\.weight",
        "a Megatron Core checkpoint (decoder.layers.N.self_attention.linear_qkv)",
        "convert it to the Hugging Face layout with Megatron Bridge or NeMo",
    ),
    (
        ".attn_q.",
        r"blk\.\d+\.attn_q\.weight",
        "a checkpoint with llama.cpp's names (blk.N.attn_q)",
        "check the folder that it was converted from",
    ),
)
"""A part of one tensor name, the pattern of the whole name, what has it, and how it is converted."""

_ADAPTER = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "vera_lambda_", "hada_w",
    "lokr_w", "oft_r", "oft_R", "ia3_l", "prompt_embeddings", "adaption_prompt", "adaption_gate", "trainable_tokens_",
    "modules_to_save.",
)  # fmt: skip


def name_foreign_layout(
    tensors: Mapping[str, TensorInfo], *, mistral: bool = False, adapter_base: str | None = None
) -> str | None:
    """What the tensors are, with the command that converts them, when they are another tool's; else None.

    ``mistral`` says that the files beside them are Mistral's (its layout has the names of Meta's), ``adapter_base``
    what an adapter_config.json beside them names as the base.
    """
    empty = _find_placeholders(tensors)
    if empty:
        return (
            f"holds {empty:,} of {len(tensors):,} tensors as torch.Size([0]) placeholders: a DeepSpeed ZeRO-3 save "
            f"that was never gathered; run python zero_to_fp32.py . OUT in the DeepSpeed folder and check OUT"
        )
    if tensors and all(map(_is_adapter, tensors)):
        return f"is {describe_adapter(adapter_base)}"
    joined = "\n".join(tensors)
    for marker, pattern, what, how in LAYOUTS:
        if marker in joined and any(marker in name and re.fullmatch(pattern, name) for name in tensors):
            if how is _META and mistral:
                return f"is {what.replace('Meta', 'Mistral', 1)}; {_MISTRAL}"
            return f"is {what}; {how}"
    return None


def describe_adapter(base: str | None) -> str:
    """The sentence part for a LoRA or other PEFT adapter without its base model."""
    named = f" for {printable(base, 100)}" if base else ""
    return (
        f"an adapter alone{named}, not a model; merge it into its base first: "
        f"PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(OUT)"
    )


def read_adapter_base(listing: Listing) -> str | None:
    """The base model that an adapter_config.json in the folder names."""
    if "adapter_config.json" not in listing.files:
        return None
    try:
        values, _, _ = read_json(os.path.join(listing.folder, "adapter_config.json"))
    except ReadError:
        return None
    base = values.get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def describe_dcp(folder: str) -> str:
    """The sentence part for a folder of torch.distributed.checkpoint (FSDP)."""
    return (
        f"a distributed checkpoint (FSDP or torch.distributed.checkpoint shards); join it first: python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {printable(folder)} OUT.pt"
    )


DEEPSPEED = (
    "a DeepSpeed checkpoint (ZeRO shards); join them first, in the folder that has the script: python zero_to_fp32.py "
    ". OUT"
)


def find_adapter_tensors(names: Iterable[str]) -> tuple[str, ...]:
    """The names that belong to an adapter (LoRA and its kin)."""
    return tuple(filter(_is_adapter, names))


def _is_adapter(name: str) -> bool:
    return any(part in name for part in _ADAPTER)


def _find_placeholders(tensors: Mapping[str, TensorInfo]) -> int:
    """Number of ``torch.Size([0])`` tensors when they are most of the file, else 0."""
    empty = sum(1 for tensor in tensors.values() if tensor.shape == (0,) and tensor.kind != "buffer")
    return empty if empty * 2 > len(tensors) else 0
