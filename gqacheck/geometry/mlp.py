"""The feed-forward block of one layer: dense, or experts as numbered modules, as one stacked tensor, and shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gqacheck.checkpoint import ModuleInfo, Plain
from gqacheck.geometry.config import config_layer_value, is_left_out
from gqacheck.geometry.facts import Expert, Mlp, Projection
from gqacheck.geometry.family import Family
from gqacheck.geometry.pieces import Parts, Piece, length, projection, rows_and_columns

_DENSE = ("up", "gate", "gate_up", "down")
_BLOCK = 32
"""Elements that one row of an mxfp4 block tensor stands for, per block."""


def mlp_of(
    parts: Parts,
    index: int,
    path: str,
    family: Family,
    config: Mapping[str, Plain],
    modules: Mapping[str, ModuleInfo],
    clean_path: str,
) -> Mlp:
    """The feed-forward block. path: of the layer as stored; clean_path: as ``modules`` is keyed."""
    if is_left_out(config, "intermediate_size", index):
        return Mlp("dropped")  # LLM-Drop may leave its weights in the file
    if parts.experts or parts.stacked or parts.router is not None:
        return _moe(parts, path, family, modules, clean_path)
    names = [parts.dense[role].module for role in _DENSE if role in parts.dense]
    if not names:
        declared = config_layer_value(config, "intermediate_size", index)
        return Mlp("dropped" if declared == 0 else "absent")
    name = names[0].rpartition(".")[0]
    gate, up, down, fused = (
        projection(role, parts.dense.get(role), clean_path, modules) for role in ("gate", "up", "down", "gate_up")
    )
    if fused is not None and gate is None and up is None:
        gate, up = _halves(fused, family)
    plain = family.mlp == "plain" or (family.generic and "gate" not in parts.dense and "gate_up" not in parts.dense)
    return Mlp(
        "plain" if plain else "gated",
        f"{path}.{name}",
        gate=gate,
        up=up,
        down=down,
        fused=fused,
        module=modules.get(f"{clean_path}.{name}") if modules else None,
    )


def _halves(fused: Projection, family: Family) -> tuple[Projection, Projection]:
    gate = (fused.rows + 1) // 2
    sizes = (("gate", gate), ("up", fused.rows - gate))
    first, second = (
        replace(
            fused,
            role=role,
            rows=rows,
            bias=None if fused.bias is None else rows,
            module=None,
            derived=family.gate_up,
        )
        for role, rows in sizes
    )
    return first, second


def _moe(parts: Parts, path: str, family: Family, modules: Mapping[str, ModuleInfo], clean_path: str) -> Mlp:
    experts: list[Expert] = []
    count = 0
    for number in sorted(parts.experts):
        count += 1
        experts.append(_expert(number, parts.experts[number], modules, clean_path))
    if parts.stacked:
        stacked = _stacked(parts.stacked, family, modules, clean_path)
        count += _stacked_count(parts.stacked)
        experts.append(stacked)
    if parts.shared:
        experts.append(_expert("shared", parts.shared, modules, clean_path))
    name = _moe_name(parts)
    router = projection("router", parts.router, clean_path, modules)
    return Mlp(
        "moe",
        f"{path}.{name}" if name else path,
        module=modules.get(f"{clean_path}.{name}") if modules else None,
        router=router,
        experts=tuple(experts),
        n_experts_stored=count,
    )


def _moe_name(parts: Parts) -> str:
    if parts.experts:
        piece = next(iter(next(iter(parts.experts.values())).values()))
        return piece.module.partition(".experts.")[0]
    if parts.stacked:
        module = next(iter(parts.stacked.values())).module
        return module.partition(".")[0]
    return parts.router.module.partition(".")[0] if parts.router else ""


def _expert(
    index: int | str, pieces: Mapping[str, Piece], modules: Mapping[str, ModuleInfo], clean_path: str
) -> Expert:
    gate, up, down = (projection(role, pieces.get(role), clean_path, modules) for role in ("gate", "up", "down"))
    module = None
    if modules:
        module = modules.get(f"{clean_path}.{next(iter(pieces.values())).module.rpartition('.')[0]}")
    return Expert("shared" if index == "shared" else int(index), gate=gate, up=up, down=down, module=module)


def _stacked_count(pieces: Mapping[str, Piece]) -> int:
    for piece in pieces.values():
        tensor = piece.weight or piece.blocks
        if tensor is not None:
            return tensor.shape[0] if tensor.shape else 0
    return 0


def _stacked(pieces: Mapping[str, Piece], family: Family, modules: Mapping[str, ModuleInfo], clean_path: str) -> Expert:
    fused = _stacked_projection("gate_up", pieces.get("gate_up"), family)
    down = _stacked_projection("down", pieces.get("down"), family)
    gate, up = (None, None) if fused is None else _halves(fused, family)
    owner = next(iter(pieces.values())).module.rpartition(".")[0]
    return Expert("stacked", gate, up, down, fused, modules.get(f"{clean_path}.{owner}") if modules else None)


def _stacked_projection(role: str, piece: Piece | None, family: Family) -> Projection | None:
    """One expert's share of a stacked tensor, in the orientation of ``nn.Linear``."""
    if piece is None:
        return None
    if piece.blocks is not None and len(piece.blocks.shape) == 4:
        tensor = piece.blocks
        rows, columns = tensor.shape[1], tensor.shape[2] * _BLOCK
    elif piece.weight is not None:
        tensor = piece.weight
        rows, columns = rows_and_columns(tensor.shape[1:])
        if family.stacked_transposed:
            rows, columns = columns, rows
    else:
        return None
    bias = piece.bias
    each = bias.shape[-1] if bias is not None and bias.shape else length(bias)
    return Projection(
        role=role,
        name=piece.module,
        tensor=tensor.name,
        rows=rows,
        columns=columns,
        dtype=tensor.dtype,
        bias=each,
        bias_tensor=bias.name if bias is not None else None,
    )
