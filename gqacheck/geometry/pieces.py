"""One layer's tensors by role: what `slots` says of each name, gathered into pieces that become projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gqacheck.checkpoint import ModuleInfo, TensorInfo
from gqacheck.geometry.facts import Projection
from gqacheck.geometry.slots import Slot, Slots

_PACKED_DTYPES = frozenset({"uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"})


@dataclass(slots=True)
class Piece:
    """The tensors of one projection, norm or router. ``module`` is its path inside the layer.

    packed: a quantiser's tensors stand for the weight, which has no shape of its own then.
    """

    module: str
    weight: TensorInfo | None = None
    bias: TensorInfo | None = None
    blocks: TensorInfo | None = None
    packed: bool = False

    @property
    def stored(self) -> bool:
        """Whether there is a weight in any form."""
        return self.weight is not None or self.packed


@dataclass(slots=True)
class Parts:
    """Everything one layer holds, by role. ``unknown``: stored names that nothing explains."""

    dense: dict[str, Piece] = field(default_factory=dict)
    router: Piece | None = None
    experts: dict[int, dict[str, Piece]] = field(default_factory=dict)
    shared: dict[str, Piece] = field(default_factory=dict)
    stacked: dict[str, Piece] = field(default_factory=dict)
    norms: dict[str, Piece] = field(default_factory=dict)
    norm_rows: dict[str, list[TensorInfo]] = field(default_factory=dict)
    sinks: TensorInfo | None = None
    linear: str | None = None
    mla: bool = False
    unknown: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether nothing was recognised."""
        return not (self.dense or self.experts or self.shared or self.stacked or self.linear or self.mla)


def sort_parts(tensors: Mapping[str, TensorInfo], slots: Slots) -> Parts:
    """The tensors of one layer by role."""
    parts = Parts()
    for name, tensor in tensors.items():
        found = slots.find(name)
        if found is None or not _file(parts, found[0], found[1], tensor):
            parts.unknown.append(tensor.name)
    return parts


def _file(parts: Parts, slot: Slot, index: int | None, tensor: TensorInfo) -> bool:
    group, packed = slot.group, False
    if group == "quantized":
        group, packed = slot.part, True
    if group == "explained":
        return True
    if group == "linear":
        parts.linear = slot.module
        return True
    if group == "mla":
        parts.mla = True
        return True
    if group == "sinks":
        parts.sinks = tensor
        return True
    if group == "norm" and slot.module.endswith("{e}"):
        if slot.part == "weight":
            parts.norm_rows.setdefault(slot.role, []).append(tensor)
        return True
    if group == "router":
        if parts.router is None:
            parts.router = Piece(slot.module)
        return _fill(parts.router, slot.part, tensor, packed)
    module = slot.module
    if index is not None and group == "expert":
        home = parts.experts.get(index)
        if home is None:
            home = parts.experts[index] = {}
        module = module.replace("{e}", str(index))
    else:
        home = {"dense": parts.dense, "shared": parts.shared, "stacked": parts.stacked, "norm": parts.norms}[group]
    piece = home.get(slot.role)
    if piece is None:
        piece = home[slot.role] = Piece(module)
    elif piece.module != module:
        return False
    return _fill(piece, slot.part, tensor, packed)


def _fill(piece: Piece, part: str, tensor: TensorInfo, packed: bool) -> bool:
    if packed:
        piece.packed = True
    elif part == "bias":
        piece.bias = tensor
    elif part == "blocks":
        piece.blocks, piece.packed = tensor, True
    else:
        piece.weight = tensor
    return True


def projection(role: str, piece: Piece | None, layer_path: str, modules: Mapping[str, ModuleInfo]) -> Projection | None:
    """The linear map of one piece, None when no weight with a shape of its own is stored.

    A weight of more or fewer than two dimensions counts as rows x everything else, so that rules see its size.
    """
    if piece is None or piece.weight is None:
        return None
    weight = piece.weight
    if weight.dtype in _PACKED_DTYPES and (piece.packed or weight.dtype == "uint8"):  # no weight is made of bytes
        return None
    rows, columns = rows_and_columns(weight.shape)
    module = modules.get(f"{layer_path}.{piece.module}") if modules else None
    name = piece.module if role == "router" or "expert" in piece.module else piece.module.rpartition(".")[2]
    return Projection(
        role=role,
        name=name,
        tensor=weight.name,
        rows=rows,
        columns=columns,
        dtype=weight.dtype,
        bias=length(piece.bias),
        bias_tensor=piece.bias.name if piece.bias is not None else None,
        module=module,
    )


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """Output and input width of a weight: its first size, and all the others together (1 when there are none)."""
    if len(shape) == 2:
        return shape[0], shape[1]
    columns = 1
    for size in shape[1:]:
        columns *= size
    return (shape[0] if shape else 1), columns


def length(bias: TensorInfo | None) -> int | None:
    """Number of elements of a bias, None when there is none."""
    return None if bias is None else bias.numel
