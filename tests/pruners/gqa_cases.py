"""Random tiny GQA models and random paired plans, small enough to read when a property fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st

from pruners.anatomy import dissect
from pruners.plan import KvGroup, LayerPlan, LayerShape, ModelShape, PruningPlan

RATIOS = ((1, 3), (2, 3), (3, 2), (4, 3), (7, 2), (8, 1), (4, 1), (2, 5), (7, 1), (1, 5))
"""(query heads per KV head, KV heads): never equally many of both, odd counts among them."""
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "starcoder2", "mixtral",
)  # fmt: skip
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One model, by what builds it."""

    family: str
    group_size: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    channels: int
    n_layers: int
    bias: bool
    tied: bool
    seed: int

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """The model in eval mode, with weights large enough that every head matters."""
        from transformers import AutoConfig, AutoModelForCausalLM

        n_q = self.group_size * self.n_kv_heads
        values: dict[str, Any] = {
            "vocab_size": 61,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": n_q,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.channels,
            "max_position_embeddings": 64,
            "tie_word_embeddings": self.tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "attention_bias": self.bias,
            "mlp_bias": self.bias,
            "use_bias": self.bias,
            "sliding_window": None if self.family not in ("gemma2", "gemma3_text") else 8,
            "query_pre_attn_scalar": self.head_dim,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
        }
        config = AutoConfig.for_model(self.family, **values)
        config._attn_implementation = "eager" if self.family == "gemma2" else "sdpa"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(config).eval()
            for name, parameter in model.named_parameters():
                scale = 0.3 if parameter.dim() > 1 else 0.2
                noise = torch.randn(parameter.shape) * scale
                parameter.data = noise if parameter.dim() > 1 or "bias" in name else parameter.data + noise
        model.generation_config.eos_token_id = None
        model = model.to(dtype)
        if self.family == "mixtral":
            model.set_experts_implementation("eager")
        return model


@st.composite
def cases(draw: Any, families: tuple[str, ...] = FAMILIES, ratios: tuple[tuple[int, int], ...] = RATIOS) -> Case:
    """Any of the families at any of the ratios."""
    family = draw(st.sampled_from(families))
    group, kv = draw(st.sampled_from(ratios))
    head_dim = draw(st.sampled_from((4, 8)))
    hidden = group * kv * head_dim
    if family in ("qwen3", "gemma2", "mistral") and draw(st.booleans()):
        hidden = draw(st.sampled_from((24, 40)))  # their config classes do not tie it to the heads
        hidden = hidden if family == "mistral" or hidden % (group * kv) == 0 else group * kv * head_dim
    return Case(
        family,
        group,
        kv,
        head_dim,
        hidden,
        draw(st.sampled_from((8, 13, 24))),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 5)),
    )


def subsets(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of 0 … size - 1, at least one, in order."""
    return st.sets(st.integers(0, size - 1), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


@st.composite
def layer_plans(draw: Any, shape: LayerShape) -> LayerPlan:
    """What stays of one layer; blocks may be left alone."""
    groups = channels = None
    if shape.n_kv_heads and draw(st.booleans()):
        count = draw(st.integers(1, shape.group_size))
        groups = tuple(
            KvGroup(head, tuple(sorted(draw(st.permutations(range(shape.group_size)))[:count])))
            for head in draw(subsets(shape.n_kv_heads))
        )
    if shape.channels and draw(st.booleans()):
        channels = draw(subsets(shape.channels))
    experts: dict[int | str, tuple[int, ...]] = {}
    if shape.experts and draw(st.booleans()):
        width = draw(st.integers(1, min(shape.experts.values())))
        for name, size in shape.experts.items():
            experts[name] = tuple(sorted(draw(st.permutations(range(size)))[:width]))
    return LayerPlan(groups, channels, experts)


@st.composite
def plans(draw: Any, shape: ModelShape, *, depth: bool = True) -> PruningPlan:
    """Any plan for a parent of this shape."""
    kept = draw(subsets(shape.n_layers)) if depth and draw(st.integers(0, 3)) == 0 else range(shape.n_layers)
    cut = {index: draw(layer_plans(layer)) if index in kept else None for index, layer in enumerate(shape.layers)}
    return PruningPlan.of(shape, cut)


@st.composite
def planned(
    draw: Any,
    families: tuple[str, ...] = FAMILIES,
    ratios: tuple[tuple[int, int], ...] = RATIOS,
    *,
    depth: bool = True,
) -> tuple[Case, PruningPlan]:
    """A model by its case, and a plan that removes something of it. The shape is known without any weight."""
    case = draw(cases(families, ratios))
    return case, draw(plans(shape_of(case), depth=depth).filter(lambda plan: not plan.whole))


_SHAPES: dict[Case, ModelShape] = {}


def shape_of(case: Case) -> ModelShape:
    """What plans for this case are made for."""
    key = replace(case, seed=0)
    if key not in _SHAPES:
        _SHAPES[key] = dissect(key.build(torch.float32)).shape
    return _SHAPES[key]


def ids_of(rows: int = 2, length: int = 9) -> torch.Tensor:
    """Token ids [rows, length], the same every time."""
    return torch.arange(rows * length).view(rows, length).mul(7).remainder(58).add(3)


@torch.inference_mode()
def logits_of(model: Any, ids: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Logits [rows, length, vocabulary] in float64."""
    return model(input_ids=ids_of() if ids is None else ids, use_cache=False, **options).logits.double()


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in standard deviations of ``theirs``."""
    return float((ours - theirs).abs().max() / theirs.std())
