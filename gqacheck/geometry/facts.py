"""What each layer of a checkpoint measures, by role. Produced by ``measure``; read by rules, reports and runtime.

Shapes are named once: a projection has ``rows`` (its output width) and ``columns`` (its input width), both in
elements and in the orientation of ``nn.Linear`` however the file stores it. Nothing here judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, ModuleInfo, Plain
from gqacheck.geometry.families import Family
from gqacheck.geometry.origins import Lineage, PairingFit
from gqacheck.geometry.outcomes import RuntimeFacts


@dataclass(frozen=True, slots=True)
class Claim:
    """One source's word on one number: ``value`` and where it stands (``config.json head_dim``)."""

    value: int
    source: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with the source that was believed and every claim that was heard, believed one first."""

    value: int
    source: str
    claims: tuple[Claim, ...] = ()

    @property
    def disputed(self) -> tuple[Claim, ...]:
        """The claims that say something else."""
        return tuple(claim for claim in self.claims if claim.value != self.value)


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear map as measured.

    role: ``q k v o qkv gate up down gate_up router``. name: its short module name in the file (``q_proj``,
    ``block_sparse_moe.experts.3.w1``) for messages. tensor: stored name of the weight.
    derived: for q, k, v, gate, up cut out of a fused tensor, how the split was found
    (``o_proj columns``, ``config``, ``config ratio``, ``halves``, ``interleaved``); None where the weight is stored by
    itself.
    bias: length of the bias, None when there is none. module: the Linear in a whole-module pickle.
    dtype: of the weight.
    """

    role: str
    name: str
    tensor: str
    rows: int
    columns: int
    dtype: str
    bias: int | None = None
    bias_tensor: str | None = None
    module: ModuleInfo | None = None
    derived: str | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """One normalisation weight. ``role`` is ``input``, ``post_attention``, ``q``, ``k``, ``final``, …

    ``name`` is its short module name, ``shape`` as stored; ``width`` is the last size (1 for a scalar).
    """

    role: str
    name: str
    tensor: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Last size of the weight."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention block of one layer.

    kind: ``full`` (softmax attention: the head rules apply), ``linear`` (Qwen3-Next's gated delta net and the
    like), ``mla`` (DeepSeek: out of scope for the head rules), ``dropped`` (the config declares this layer's
    attention removed), ``absent`` (nothing stored).
    fused: the stored q/k/v tensor where there is one; q, k, v are then derived from it.
    q_unit: rows of q per query head: head_dim, or 2 x head_dim for a gated q_proj.
    head_dim: believed value with its source, None if nothing says. sinks: length of the per-head sinks (gpt-oss).
    """

    kind: Literal["full", "linear", "mla", "dropped", "absent"]
    path: str = ""
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None
    o: Projection | None = None
    fused: Projection | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    sinks: int | None = None
    module: ModuleInfo | None = None
    head_dim: Measured | None = None
    q_unit: int | None = None

    @property
    def n_q_heads(self) -> int | None:
        """Query heads, when the rows divide exactly; None otherwise."""
        return _heads(self.q, self.q_unit)

    @property
    def n_kv_heads(self) -> int | None:
        """KV heads counted on k, when the rows divide exactly; None otherwise."""
        return _heads(self.k, self.head_dim.value if self.head_dim else None)


def _heads(projection: Projection | None, unit: int | None) -> int | None:
    if projection is None or not unit or projection.rows % unit:
        return None
    return projection.rows // unit


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert (``index``), the shared one (``"shared"``) or all of them in one stacked tensor (``"stacked"``)."""

    index: int | Literal["shared", "stacked"]
    gate: Projection | None = None
    up: Projection | None = None
    down: Projection | None = None
    fused: Projection | None = None
    module: ModuleInfo | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """The feed-forward block of one layer.

    kind: ``gated`` (gate, up, down), ``plain`` (up, down; no gate), ``moe``, ``dropped``, ``absent``.
    router: rows are experts. n_experts_stored counts routed experts in the file. For ``moe`` the projections are
    in ``experts`` and gate/up/down are None.
    """

    kind: Literal["gated", "plain", "moe", "dropped", "absent"]
    path: str = ""
    gate: Projection | None = None
    up: Projection | None = None
    down: Projection | None = None
    fused: Projection | None = None
    module: ModuleInfo | None = None
    router: Projection | None = None
    experts: tuple[Expert, ...] = ()
    n_experts_stored: int | None = None

    @property
    def intermediate_size(self) -> int | None:
        """Width of the hidden activation: rows of up (or the first routed expert's), None if not stored."""
        if self.up is not None:
            return self.up.rows
        for expert in self.experts:
            if expert.index != "shared" and expert.up is not None:
                return expert.up.rows
        return None


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. ``index`` as stored in the names; ``path`` its module path as stored."""

    index: int
    path: str
    attention: Attention
    mlp: Mlp
    norms: tuple[Norm, ...] = ()
    module: ModuleInfo | None = None

    @property
    def signature(self) -> tuple[object, ...]:
        """What makes two layers the same shape: heads, head_dim, intermediate size and kinds."""
        a, m = self.attention, self.mlp
        return (
            a.kind,
            a.q.rows if a.q else None,
            a.k.rows if a.k else None,
            a.v.rows if a.v else None,
            a.o.columns if a.o else None,
            a.head_dim.value if a.head_dim else None,
            m.kind,
            m.intermediate_size,
            m.n_experts_stored,
        )


@dataclass(frozen=True, slots=True)
class Geometry:
    """The measured model.

    family_source: how the family was recognised (``config model_type``, ``module class``, ``--family``,
        ``tensor names``). family.generic is True for the fallback.
    prefix: what stood before the layers' names and was seen through (``base_model.model.``), "" if nothing.
    hidden_size: embedding columns first, then norms, then config.
    layers: in order of index; indices may have gaps. layers_path: path of the layer list as stored.
    embedding / lm_head: Projection with rows = vocabulary; lm_head None when not stored (tied or absent).
    unknown: tensor names that the family does not explain. missing: names that the family needs and the file lacks,
        with the layer (None for the model's own).
    not_checked: one line per part that is seen and left alone (``vision_tower: 391 tensors``).
    config: the text model's config values (a wrapper's ``text_config`` opened), {} when there is none.
    """

    family: Family
    family_source: str
    prefix: str
    layers_path: str
    layers: tuple[Layer, ...]
    hidden_size: Measured | None = None
    embedding: Projection | None = None
    lm_head: Projection | None = None
    lm_head_tied: bool = False
    final_norm: Norm | None = None
    unknown: tuple[str, ...] = ()
    missing: tuple[tuple[str, int | None], ...] = ()
    not_checked: tuple[str, ...] = ()
    config: Mapping[str, Plain] = field(default_factory=dict)
    config_source: str | None = None

    @property
    def n_layers(self) -> int:
        """Layers stored."""
        return len(self.layers)

    @property
    def uniform(self) -> bool:
        """Whether all layers that hold full attention agree in heads and all dense MLPs in width."""
        heads = {layer.signature[1:6] for layer in self.layers if layer.attention.kind == "full"}
        widths = {layer.mlp.intermediate_size for layer in self.layers if layer.mlp.kind in ("gated", "plain")}
        experts = {
            (layer.mlp.intermediate_size, layer.mlp.n_experts_stored)
            for layer in self.layers
            if layer.mlp.kind == "moe"
        }
        return len(heads) <= 1 and len(widths) <= 1 and len(experts) <= 1


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the caller knows or allows: ``--expect-layers``, ``--expect-ratio`` (q heads, kv heads),
    ``--max-ppl-ratio`` (times the base's perplexity)."""

    layers: int | None = None
    ratio: tuple[int, int] | None = None
    ppl_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What every rule is handed: one checkpoint with its geometry, the parent's where given, the caller's word.

    ``lineage`` is filled before the GQA6xx rules run, ``runtime`` before the GQA7xx rules, ``pairing_fit`` where the
    weights were read for GQA504.
    """

    checkpoint: Checkpoint
    geometry: Geometry
    base: Subject | None = None
    expect: Expectations = field(default_factory=Expectations)
    runtime: RuntimeFacts | None = None
    lineage: Lineage | None = None
    pairing_fit: PairingFit | None = None

    @property
    def container(self) -> Container:
        """What a consumer runs from."""
        return self.checkpoint.container

    @property
    def config(self) -> ConfigInfo | None:
        """The text model's config with its source, None when there is none."""
        if self.geometry.config_source is None:
            return None
        return ConfigInfo(self.geometry.config, self.geometry.config_source)
