"""Hypothesis strategies for tiny GQA models and for what a pruner can be asked. They need hypothesis installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from gqacheck.testing.models import FAMILIES, RATIOS, GqaConfig
from gqacheck.testing.requests import Part, PruningRequest

SHARES = (0.5, 0.25, 0.34, 0.2, 0.4, 0.6)
"""Pruning ratios that are drawn; none that leaves nothing of a block by common rounding."""
FREE_HIDDEN = ("qwen3", "mistral")
"""Families whose configs do not tie hidden_size to the heads."""
HEAD_DIMS, HIDDEN_SIZES, CHANNELS = (4, 8), (24, 40), (8, 13, 24)
MAX_LAYERS = 3


@st.composite
def gqa_configs(
    draw: st.DrawFn,
    families: Sequence[str] = FAMILIES,
    ratios: Sequence[tuple[int, int]] = RATIOS,
    max_layers: int = MAX_LAYERS,
) -> GqaConfig:
    """Configs of tiny models, any of the families at any of the ratios (query heads per KV head, KV heads)."""
    family = draw(st.sampled_from(tuple(families)))
    group, kv = draw(st.sampled_from(tuple(ratios)))
    n_layers = draw(st.integers(1, max_layers))
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    hidden = group * kv * head_dim
    if family in FREE_HIDDEN and draw(st.booleans()):
        hidden = draw(st.sampled_from(HIDDEN_SIZES))
    channels = draw(st.sampled_from(CHANNELS))
    bias, tied = draw(st.booleans()), draw(st.booleans())
    return GqaConfig(family, group, kv, head_dim, hidden, channels, n_layers, bias, tied, draw(st.integers(0, 5)))


def gqa_models(
    families: Sequence[str] = FAMILIES,
    ratios: Sequence[tuple[int, int]] = RATIOS,
    dtypes: Sequence[str] = ("float64", "float32"),
) -> st.SearchStrategy[Any]:
    """Live transformers models in eval mode; draw ``gqa_configs`` instead to see in one line which model failed."""
    configs = gqa_configs(families, ratios)
    return st.builds(GqaConfig.build, configs, st.sampled_from(tuple(dtypes)))


def part_choices(parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """What one request can name of ``parts``, the plainest first."""
    choices: list[tuple[Part, ...]] = [(part,) for part in ("kv_groups", "queries") if part in parts]
    return choices if "mlp" not in parts else [*choices, ("mlp",), *((*choice, "mlp") for choice in choices)]


@st.composite
def pruning_requests(
    draw: st.DrawFn,
    parts: Sequence[Part] = ("kv_groups", "mlp"),
    n_layers: int | None = None,
    shares: Sequence[float] = SHARES,
) -> PruningRequest:
    """Requests for some of ``parts``, and never for KV groups and queries at once.

    n_layers: of the model; None for requests that are always about all layers.
    """
    chosen = draw(st.sampled_from(part_choices(parts)))
    layers = None
    if n_layers is not None and draw(st.booleans()):
        start = draw(st.integers(0, n_layers - 1))
        layers = (start, draw(st.integers(start + 1, n_layers)))
    return PruningRequest(draw(st.sampled_from(tuple(shares))), chosen, layers, draw(st.integers(0, 9)))


@dataclass(frozen=True, slots=True)
class PruningCase:
    """A model by its config, and what a pruner is asked to do to it."""

    config: GqaConfig
    request: PruningRequest

    def __str__(self) -> str:
        return f"{self.config}; asked to {self.request}"


@st.composite
def pruning_cases(
    draw: st.DrawFn,
    families: Sequence[str] = FAMILIES,
    ratios: Sequence[tuple[int, int]] = RATIOS,
    parts: Sequence[Part] = ("kv_groups", "mlp"),
    shares: Sequence[float] = SHARES,
    *,
    layer_ranges: bool = True,
) -> PruningCase:
    """A config and a request that fits it. layer_ranges: whether some requests are for a part of the layers."""
    config = draw(gqa_configs(families, ratios))
    n_layers = config.n_layers if layer_ranges else None
    return PruningCase(config, draw(pruning_requests(parts, n_layers, shares)))
