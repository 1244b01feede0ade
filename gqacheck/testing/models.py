"""Tiny random GQA models of transformers' families, small enough to read when a property fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gqacheck.errors import MissingDependency, UsageError

FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "starcoder2", "mixtral",
)  # fmt: skip
"""``model_type`` of everything that ``GqaConfig`` can build, plainest first: hypothesis shrinks towards the front."""
RATIOS = ((2, 3), (3, 2), (4, 3), (7, 2), (2, 5), (4, 6), (7, 4))
"""(query heads per KV head, KV heads), that is 6:3, 6:2, 12:3, 14:2, 10:5, 24:6 and 28:4.

Never as many KV heads as each has query heads, for then head ``i // group`` and head ``i % group`` look alike.
"""
VOCABULARY = 61
BIASES: Mapping[str, tuple[str, ...]] = {
    "llama": ("attention_bias", "mlp_bias"),
    "qwen3": ("attention_bias",),
    "gemma2": ("attention_bias",),
    "gemma3_text": ("attention_bias",),
    "granite": ("attention_bias", "mlp_bias"),
    "olmo2": ("attention_bias",),
    "starcoder2": ("use_bias",),
}
"""The config keys that switch biases on. Qwen2 has them on q, k and v always; the others never."""


@dataclass(frozen=True, slots=True)
class GqaConfig:
    """One tiny model, by everything that makes it: the same config builds the same model, bit by bit.

    group_size: query heads per KV head. bias: wherever the family can have biases. tied: lm_head is the embedding.
    """

    family: str
    group_size: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    bias: bool = False
    tied: bool = False
    seed: int = 0

    @property
    def n_q_heads(self) -> int:
        """Query heads of every layer."""
        return self.group_size * self.n_kv_heads

    def __str__(self) -> str:
        layers = "1 layer" if self.n_layers == 1 else f"{self.n_layers} layers"
        heads = f"{self.n_q_heads} query heads on {self.n_kv_heads} KV heads"
        return f"{self.family}, {layers}, {heads}, head_dim {self.head_dim}, {self.intermediate_size} channels"

    def transformers_config(self) -> Any:
        """The config of transformers.

        Raises:
            UsageError: a family that is not known here.
            MissingDependency: transformers is not installed.
        """
        if self.family not in FAMILIES:
            raise UsageError(f"family {self.family!r} is not known here: it must be one of {', '.join(FAMILIES)}")
        try:
            from transformers import AutoConfig
        except ModuleNotFoundError as error:
            raise MissingDependency("building models to test with", "run") from error
        values: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_q_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": 64,
            "tie_word_embeddings": self.tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "sliding_window": None,
        }
        values |= dict.fromkeys(BIASES.get(self.family, ()), self.bias)
        if self.family.startswith("gemma"):
            values |= {"query_pre_attn_scalar": self.head_dim, "sliding_window": 8}
        if self.family == "mixtral":
            values |= {"num_local_experts": 3, "num_experts_per_tok": 2}
        config = AutoConfig.for_model(self.family, **values)
        config._attn_implementation = "eager" if self.family == "gemma2" else "sdpa"
        return config

    def build(self, dtype: Any = "float64") -> Any:
        """The model in eval mode, with weights so large that every head matters. torch's random state is left alone.

        dtype: a name or one of torch's.
        """
        config = self.transformers_config()
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(config).eval()
            for name, parameter in model.named_parameters():
                matrix = parameter.dim() > 1
                noise = torch.randn(parameter.shape) * (0.3 if matrix else 0.2)
                parameter.data = noise if matrix or "bias" in name else parameter.data + noise
        model.generation_config.eos_token_id = None
        model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if self.family == "mixtral":
            model.set_experts_implementation("eager")
        return model


def part_sizes(config: GqaConfig, parts: Iterable[str]) -> list[int]:
    """How many of each of these parts one layer has, as requests count them."""
    counts = {"kv_groups": config.n_kv_heads, "queries": config.group_size, "mlp": config.intermediate_size}
    return [counts[part] for part in parts]


def token_ids(rows: int = 2, length: int = 9) -> Any:
    """Token ids [rows, length] of any model built here, the same every time."""
    import torch

    return torch.arange(rows * length).view(rows, length).mul(7).remainder(VOCABULARY - 3).add(3)


def logits_of(model: Any, ids: Any = None, **options: Any) -> Any:
    """Logits [rows, length, vocabulary] in float64, without a cache."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=token_ids() if ids is None else ids, use_cache=False, **options).logits
    return logits.double()


def logits_apart(ours: Any, theirs: Any) -> float:
    """The largest difference of two sets of logits, in standard deviations of ``theirs``."""
    return float((ours - theirs).abs().max() / theirs.std())
