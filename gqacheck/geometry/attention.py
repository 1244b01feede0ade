"""The attention block of one layer: projections, norms and, for fused tensors, where q, k and v begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gqacheck.checkpoint import ModuleInfo, Plain
from gqacheck.geometry.config import config_layer_value, is_left_out
from gqacheck.geometry.facts import Attention, Norm, Projection
from gqacheck.geometry.family import Family
from gqacheck.geometry.head_dim import Rows
from gqacheck.geometry.pieces import Parts, projection

_ROLES = ("q", "k", "v", "o", "qkv")


def attention_of(
    parts: Parts,
    index: int,
    path: str,
    family: Family,
    config: Mapping[str, Plain],
    modules: Mapping[str, ModuleInfo],
    clean_path: str,
) -> Attention:
    """The attention block without head_dim, which needs all layers: `with_head_dim` adds it.

    path: of the layer, as stored; clean_path: the same without wrappers, as ``modules`` is keyed.
    """
    made = {role: projection(role, parts.dense.get(role), clean_path, modules) for role in _ROLES}
    name = _module_name(parts)
    module = modules.get(f"{clean_path}.{name}") if name and modules else None
    block_path = f"{path}.{name}" if name else ""
    if is_left_out(config, "num_attention_heads", index):
        return Attention("dropped", block_path)  # LLM-Drop may leave its weights in the file
    if parts.mla or (family.attention == "mla" and made["o"] is not None):
        return Attention("mla", block_path or f"{path}.self_attn", o=made["o"], module=module)
    if not any(parts.dense.get(role) is not None for role in _ROLES):
        if parts.linear is not None:
            return Attention("linear", f"{path}.{parts.linear}", module=modules.get(f"{clean_path}.{parts.linear}"))
        declared = config_layer_value(config, "num_attention_heads", index)
        return Attention("dropped" if declared == 0 else "absent", block_path)
    fused = made["qkv"]
    q, k, v = made["q"], made["k"], made["v"]
    if fused is not None and q is None and k is None and v is None:
        q, k, v = _split(fused, made["o"], index, config)
    return Attention(
        "full",
        block_path,
        q=q,
        k=k,
        v=v,
        o=made["o"],
        fused=fused,
        q_norm=norm_of("q", parts),
        k_norm=norm_of("k", parts),
        sinks=parts.sinks.numel if parts.sinks is not None else None,
        module=module,
    )


def _module_name(parts: Parts) -> str:
    for role in _ROLES:
        piece = parts.dense.get(role)
        if piece is not None:
            return piece.module.rpartition(".")[0]
    return ""


def norm_of(role: str, parts: Parts) -> Norm | None:
    """The norm of one role; a list of norms, one per head (StableLM), counts as one of shape [heads, width]."""
    rows = parts.norm_rows.get(role)
    if rows:
        usual = [tensor.shape[-1] if tensor.shape else 1 for tensor in rows]
        odd = next((width for width in usual if width != usual[0]), usual[0])
        first = rows[0]
        return Norm(role, _list_name(first.name), first.name, (len(rows), odd))
    piece = parts.norms.get(role)
    if piece is None or piece.weight is None:
        return None
    return Norm(role, piece.module.rpartition(".")[2], piece.weight.name, piece.weight.shape)


def _list_name(tensor: str) -> str:
    """``….self_attn.q_layernorm.norms.0.weight`` -> ``q_layernorm``."""
    names = tensor.split(".")
    return names[names.index("norms") - 1] if "norms" in names[1:] else names[-2] if len(names) > 1 else tensor


def measured_rows(attention: Attention, index: int, family: Family) -> Rows | None:
    """The rows that say something about head_dim, None for a layer without full attention."""
    if attention.kind != "full":
        return None
    q = attention.q.rows if attention.q else None
    if family.gated_q and q is not None:
        q = q // 2 if q % 2 == 0 else None
    return Rows(
        index,
        q,
        attention.k.rows if attention.k else None,
        attention.v.rows if attention.v else None,
    )


def _split(
    fused: Projection, o: Projection | None, index: int, config: Mapping[str, Plain]
) -> tuple[Projection, Projection, Projection]:
    """q, k and v out of a fused tensor: by o_proj's width, else by the config's heads, else by its ratio.

    Always answers: what does not divide becomes k and v of different length, or of none, and the rules say so.
    """
    rows = fused.rows
    heads = config_layer_value(config, "num_attention_heads", index) or 0
    kv_heads = config_layer_value(config, "num_key_value_heads", index) or 0
    parts = heads + 2 * kv_heads
    by_ratio = rows * heads // parts if heads > 0 and kv_heads > 0 and rows % parts == 0 else None
    if o is not None and rows > o.columns and (rows - o.columns) % 2 == 0:
        q, derived = o.columns, "o_proj columns"
    elif by_ratio is not None:
        q, derived = by_ratio, "config"
    elif heads > 0 and kv_heads > 0 and heads % kv_heads == 0 and rows % (heads // kv_heads + 2) == 0:
        q, derived = rows // (heads // kv_heads + 2) * (heads // kv_heads), "config ratio"
    else:
        q, derived = min(rows, o.columns) if o is not None else rows, "o_proj columns"
    k = (rows - q) // 2
    return (
        _derived(fused, "q", q, derived),
        _derived(fused, "k", k, derived),
        _derived(fused, "v", rows - q - k, derived),
    )


def _derived(fused: Projection, role: str, rows: int, derived: str) -> Projection:
    bias = None if fused.bias is None else rows
    return replace(fused, role=role, rows=rows, bias=bias, module=None, derived=derived)
