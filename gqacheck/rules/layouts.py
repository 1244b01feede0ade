"""What the attention class that wrote a pickle reads of its own attributes, told from what the pickle holds.

The version in a pickled config may be the hub's, or absent; the layout cannot be. Read in the sources of transformers
4.33, 4.36, 4.40 to 4.43, 4.47, 4.48, 4.51, 4.55 and 5.23.
"""

from __future__ import annotations

from gqacheck.checkpoint import Checkpoint, ModuleInfo
from gqacheck.rules.heads import whole_number

Q_HEADS = ("num_heads", "num_attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads")

_COUNTS_IN_NEW_CLASSES = ("StableLm", "Mllama", "Phi3", "Llama4", "SeedOss", "Exaone4", "Falcon")
"""Classes of transformers 5 that still carry head counts of their own, though most lost them in 4.48."""

_RESHAPE = ("Qwen2Attention", "Qwen2Sdpa", "Qwen2Flash", "Qwen2Moe", "PhiAttention", "PhiSdpa", "PhiFlash", "Phi3",
            "PhiMoE", "Phimoe", "Starcoder2", "Cohere", "OlmoAttention", "OlmoSdpa", "OlmoFlash", "Olmoe", "StableLm",
            "Persimmon")  # fmt: skip
"""Classes that reshaped to their hidden_size for as long as they had that attribute and no ``scaling``."""

_RESHAPED_TO_4_41 = ("LlamaAttention", "LlamaSdpa", "LlamaFlash", "MistralAttention", "MistralSdpa", "MistralFlash")
_NEVER_RESHAPE = ("Gemma", "Granite", "Nemotron", "Falcon", "Cohere2", "Olmo2", "Olmo3")


def q_heads_attribute(module: ModuleInfo) -> str | None:
    """The attribute that counts query heads, None when the module carries none."""
    return next((key for key in Q_HEADS if whole_number(module, key) is not None), None)


def kv_heads_attribute(module: ModuleInfo) -> str | None:
    """The attribute that counts KV heads; in LLM-Pruner's own class that is num_heads."""
    found = next((key for key in KV_HEADS if whole_number(module, key) is not None), None)
    if found is None and is_pruners_own(module):
        return q_heads_attribute(module)
    return found


def is_pruners_own(module: ModuleInfo) -> bool:
    """Whether the class is LLM-Pruner's copy of Llama: as many KV heads as query heads, by one number."""
    return module.class_name.startswith("LLMPruner.")


def is_since_4_48(module: ModuleInfo) -> bool:
    """Whether the attention class is one that leaves head counts to the rows (``view(…, -1, head_dim)``)."""
    return "scaling" in module.attributes and "hidden_size" not in module.attributes


def reads_head_counts(module: ModuleInfo) -> bool:
    """Whether the class views its projections with the head counts among its attributes."""
    if q_heads_attribute(module) is None and kv_heads_attribute(module) is None:
        return False
    return not is_since_4_48(module) or module.short_class.startswith(_COUNTS_IN_NEW_CLASSES)


def reshapes_to_hidden(checkpoint: Checkpoint, module: ModuleInfo) -> bool | None:
    """Whether the class reshapes its output to its hidden_size: True and False where the layout proves it, else None.

    Llama did until 4.41, and its rotary module kept cos and sin until 4.40; since 4.43 it has a rope_type. Mistral
    did until 4.41 and kept cos and sin just as long. LLM-Pruner's copy of Llama never did.
    """
    name = module.short_class
    if "scaling" in module.attributes or is_pruners_own(module) or name.startswith(_NEVER_RESHAPE):
        return False
    if not module.class_name.startswith("transformers.models."):
        return None
    if name.startswith(_RESHAPE):
        return True
    if name.startswith(_RESHAPED_TO_4_41):
        return _by_rotary_module(checkpoint, module)
    return None


def _by_rotary_module(checkpoint: Checkpoint, module: ModuleInfo) -> bool | None:
    path = f"{module.path}.rotary_emb"
    rotary = checkpoint.modules.get(path)
    if any(f"{path}.{name}" in checkpoint.tensors for name in ("cos_cached", "_cos_cached")):
        return True
    if rotary is None:
        return None
    if module.short_class.startswith("Llama"):
        return False if "rope_type" in rotary.attributes else None
    return False
