"""Which stored tensors make up which parameter of the live model: renamed, renumbered, experts stacked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass

import torch

from gqacheck.checkpoint import Checkpoint, TensorInfo
from gqacheck.geometry.facts import Geometry
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.weights import WeightReader, is_floating

# Mixtral stores w1 (gate), w2 (down), w3 (up) per expert, the Qwen families gate_proj, down_proj, up_proj.
EXPERT = re.compile(r"^(?P<block>.*\bexperts)\.(?P<index>\d+)\.(?P<part>w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
EXPERT_PARTS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
# Names on disk and in older pickles -> live names of transformers 5.
_RENAMED = (
    ("block_sparse_moe.", "mlp."),
    ("block_sparse_moe.gate.", "mlp.router."),  # PhiMoE
    ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),  # GraniteMoE
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
)
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")


@dataclass(frozen=True, slots=True)
class Source:
    """What one live parameter is made of: one stored tensor, or one per expert (gate and up in turn)."""

    parts: tuple[TensorInfo, ...]
    per_expert: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the live parameter."""
        first = self.parts[0]
        if not self.per_expert:
            return first.shape
        rows = sum(part.shape[0] for part in self.parts[: self.per_expert])
        return (len(self.parts) // self.per_expert, rows, *first.shape[1:])

    def load(self, reader: WeightReader, dtype: torch.dtype | None, device: str) -> torch.Tensor:
        """The values, one stored tensor in memory at a time beside the result.

        Raises:
            ReadError: the bytes are not there.
            CannotRun: they are not real numbers.
        """
        for part in self.parts:
            if not is_floating(part.dtype):
                raise CannotRun(
                    f"{part.name} is stored as {part.dtype}, not as real numbers: packed weights are not run",
                    supported=False,
                )
        if not self.per_expert:
            return reader.read(self.parts[0], dtype=dtype, device=device)
        first = reader.read(self.parts[0], dtype=dtype, device=device)
        stacked = torch.empty(self.shape, dtype=first.dtype, device=device)
        for number, part in enumerate(self.parts):
            expert = number // self.per_expert
            values = first if number == 0 else reader.read(part, dtype=dtype, device=device)
            start = sum(before.shape[0] for before in self.parts[expert * self.per_expert : number])
            stacked[expert, start : start + values.shape[0]] = values
        return stacked


def live_sources(
    checkpoint: Checkpoint,
    geometry: Geometry,
    live: Container[str],
    *,
    layers: str,
    embedding: str,
    lm_head: str,
) -> dict[str, Source]:
    """Live name -> what it is made of. ``live``: names of the model's tensors; ``layers`` and the rest: live paths.

    Raises:
        CannotRun: two stored tensors are the same live one, or the experts of a layer do not stack.
    """
    names = _LiveNames(geometry, live, layers=layers, embedding=embedding, lm_head=lm_head)
    sources: dict[str, Source] = {}
    experts: dict[tuple[str, int], dict[str, TensorInfo]] = defaultdict(dict)
    for stored, info in checkpoint.tensors.items():
        name = names.of(stored)
        match = EXPERT.match(name)
        if match:
            experts[match["block"], int(match["index"])][EXPERT_PARTS[match["part"]]] = info
        elif name in sources:
            raise CannotRun(f"{stored} and {sources[name].parts[0].name} are stored for one parameter, {name}")
        else:
            sources[name] = Source((info,))
    for block, entries in _by_block(experts).items():
        sources |= {names.known(name): source for name, source in _stack(block, entries).items()}
    return sources


class _LiveNames:
    """Stored names as the live model calls them."""

    def __init__(self, geometry: Geometry, live: Container[str], *, layers: str, embedding: str, lm_head: str) -> None:
        self._live = live
        # paths keep their wrapper parts, so they are compared after those are taken out
        self._layers = {_plain(layer.path) + ".": f"{layers}.{n}." for n, layer in enumerate(geometry.layers)}
        self._stored_layers = _plain(geometry.layers_path) + "."
        self._stored_backbone = self._stored_layers[:-1].rpartition(".")[0]
        self._backbone = layers.rpartition(".")[0]
        self._exact: dict[str, str] = {}
        if geometry.embedding is not None:
            self._exact[_plain(geometry.embedding.tensor)] = f"{embedding}.weight"
        if geometry.lm_head is not None:
            head = _plain(geometry.lm_head.tensor)
            self._exact[head] = f"{lm_head}.weight"
            self._exact[head.removesuffix("weight") + "bias"] = f"{lm_head}.bias"

    def of(self, stored: str) -> str:
        """The live name; the stored one where nothing corresponds."""
        name = _plain(stored)
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        if name.startswith(self._stored_layers):
            index = name[len(self._stored_layers) :].partition(".")[0]
            live = self._layers.get(f"{self._stored_layers}{index}.")
            if live is not None:
                rest = name[len(self._stored_layers) + len(index) + 1 :]
                return self.known(live + rest)
            return name
        prefix = f"{self._stored_backbone}." if self._stored_backbone else ""
        return f"{self._backbone}.{name[len(prefix) :]}" if name.startswith(prefix) else name

    def known(self, name: str) -> str:
        """``name``, or what this transformers calls it; ``name`` when it is called nothing."""
        if name in self._live:
            return name
        for old, new in _RENAMED:
            candidate = name.replace(old, new)
            if candidate != name and candidate in self._live:
                return candidate
        return name


def _plain(name: str) -> str:
    """``name`` without the parts that compile, FSDP, checkpointing and adapters put in between."""
    return _WRAPPERS.sub("", name)


def _by_block(
    experts: dict[tuple[str, int], dict[str, TensorInfo]],
) -> dict[str, list[tuple[int, dict[str, TensorInfo]]]]:
    blocks: dict[str, list[tuple[int, dict[str, TensorInfo]]]] = defaultdict(list)
    for (block, index), parts in experts.items():
        blocks[block].append((index, parts))
    return {block: sorted(entries, key=lambda entry: entry[0]) for block, entries in blocks.items()}


def _stack(block: str, entries: list[tuple[int, dict[str, TensorInfo]]]) -> dict[str, Source]:
    shapes = {tuple(sorted((part, info.shape) for part, info in parts.items())) for _, parts in entries}
    if len(shapes) > 1 or not all(parts.keys() == {"gate", "up", "down"} for _, parts in entries):
        raise CannotRun(
            f"{block}: the {len(entries)} experts differ in shape, which the stock class cannot hold", supported=False
        )
    fused = tuple(parts[part] for _, parts in entries for part in ("gate", "up"))
    down = tuple(parts["down"] for _, parts in entries)
    return {f"{block}.gate_up_proj": Source(fused, 2), f"{block}.down_proj": Source(down, 1)}
