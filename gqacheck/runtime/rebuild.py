"""A model that runs, made of a checkpoint's tensors and config and the stock transformers class.

The pickle is never executed: shapes come from ``Geometry``, settings from the config as data, weights from the bytes,
buffers are computed anew in float32 (a pickle made after ``model.half()`` holds rounded ones). A whole-module pickle
runs from its modules, so where it says more than rounding can explain (another ``inv_freq``, another ``scaling``), that
is what the rebuilt model runs with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.names import clean
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.layouts import Source, live_sources
from gqacheck.runtime.skeleton import build_skeleton, live_layers
from gqacheck.runtime.weights import WeightReader, is_floating, same_bytes

_SHOWN = 3
_READ_BY_FORWARD = ("scaling", "variance_epsilon", "eps")
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GROUPED_BYTES = 16  # torch 2.13: "strides should be multiple of 16 bytes"
_LEFTOVERS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".masked_bias")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A model with its weights, on its device, in eval mode; ``notes`` are sentences about what was noticed.

    sources: what every live tensor is made of, by name.
    """

    model: Any
    notes: tuple[str, ...]
    sources: Mapping[str, Source] = field(default_factory=dict)


def rebuild(
    checkpoint: Checkpoint,
    geometry: Geometry,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    weights: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Rebuilt:
    """The checkpoint as a running model with weights in ``dtype`` (as stored when None) and float32 buffers.

    weights: False leaves the parameters on ``meta``, for a caller that reads them by ``Rebuilt.sources``.

    Raises:
        CannotRun: one sentence says why it cannot be rebuilt.
        ReadError: the bytes of a weight are not there.
    """
    _refuse_trained_copies(checkpoint)
    model, notes = build_skeleton(checkpoint, geometry)
    sources = sources_of(model, checkpoint, geometry)
    loader = _Loader(model, geometry, sources, dtype, device if weights else "meta")
    notes += loader.load(checkpoint, progress)
    modules_decide = checkpoint.container is Container.MODULE
    notes += _settle_buffers(model, sources, keep=modules_decide)
    if modules_decide:
        notes += _adopt_attributes(model, checkpoint, geometry)
    notes += choose_experts(model)
    if dtype is not None:
        model.config.dtype = dtype
    if weights:
        model.to(device)
        _scan(model)
    return Rebuilt(model, tuple(notes), sources)


def sources_of(model: Any, checkpoint: Checkpoint, geometry: Geometry) -> dict[str, Source]:
    """What every tensor of a live model is made of, by live name; stored ones without a counterpart under their own.

    Raises:
        CannotRun: two stored tensors are the same live one, or the experts of a layer do not stack.
    """
    return live_sources(
        checkpoint,
        geometry,
        model.state_dict().keys() | dict(model.named_buffers()).keys(),
        layers=live_layers(model, geometry)[0],
        embedding=path_of(model, model.get_input_embeddings()),
        lm_head=path_of(model, model.get_output_embeddings()),
    )


class _Loader:
    """Puts stored values into a skeleton; every live parameter exactly once, every stored tensor used or told."""

    def __init__(
        self, model: Any, geometry: Geometry, sources: dict[str, Source], dtype: torch.dtype | None, device: str
    ) -> None:
        self.model = model
        self.geometry = geometry
        self.sources = sources
        self.dtype = dtype
        self.device = device
        self.head = path_of(model, model.get_output_embeddings()) + ".weight"
        self.embedding = path_of(model, model.get_input_embeddings()) + ".weight"
        self.resizable = _resizable(geometry, sources) | {self.head, self.embedding}

    def load(self, checkpoint: Checkpoint, progress: Callable[[str, int, int], None] | None) -> list[str]:
        notes = self._match_biases()
        wanted = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        wanted += [name for name in self.model.state_dict() if name not in set(wanted)]
        tied = self._tied()
        missing = [name for name in wanted if name not in self.sources and not (tied and name == self.head)]
        if missing:
            raise CannotRun(f"{_some(missing)} not in the file, and the stock class needs {_it(missing)}")
        with WeightReader() as reader:
            for done, name in enumerate(wanted):
                if not (tied and name == self.head):
                    self._place(name, self.sources[name], reader)
                if progress is not None:
                    progress("weights", done + 1, len(wanted))
        if tied:
            self._owner(self.head)[0].weight = self._owner(self.embedding)[0].weight
        if hasattr(self.model.config, "tie_word_embeddings"):
            self.model.config.tie_word_embeddings = tied
        return notes + self._unused(set(wanted))

    def _owner(self, name: str) -> tuple[Any, str]:
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def _place(self, name: str, source: Source, reader: WeightReader) -> None:
        module, leaf = self._owner(name)
        current = getattr(module, leaf)
        if source.shape != tuple(current.shape) and name not in self.resizable:
            raise CannotRun(
                f"{source.parts[0].name} has shape {_shape(source.shape)} where the model needs "
                f"{_shape(tuple(current.shape))}"
            )
        values = source.load(reader, self.dtype, self.device)
        if leaf in module._buffers:
            module._buffers[leaf] = values
            return
        setattr(module, leaf, nn.Parameter(values))
        restate(module, leaf, values.shape)

    def _match_biases(self) -> list[str]:
        """Biases as stored: created where the file has one, removed where it has none."""
        added, removed = [], []
        for path, module in list(self.model.named_modules()):
            if "bias" not in module._parameters or f"{path}.weight" not in self.sources:
                continue
            name = f"{path}.bias"
            if name in self.sources and module._parameters["bias"] is None and isinstance(module, nn.Linear):
                module.bias = nn.Parameter(torch.empty(self.sources[name].shape, device="meta"))
                added.append(name)
            elif name not in self.sources and module._parameters["bias"] is not None:
                module.bias = None
                removed.append(name)
        notes = []
        if added:
            notes.append(f"{_count(added, 'bias', 'biases')} that the stock class does not have: kept, as stored")
        if removed:
            notes.append(f"{_count(removed, 'bias', 'biases')} that the stock class has: not stored, so left out")
        return notes

    def _tied(self) -> bool:
        """Whether lm_head is the embedding: not stored or stored as the same bytes."""
        head, embedding = self.sources.get(self.head), self.sources.get(self.embedding)
        if embedding is None:
            raise CannotRun("the token embedding is not in the file")
        if head is None:
            if not (self.geometry.lm_head_tied or getattr(self.model.config, "tie_word_embeddings", False)):
                raise CannotRun("no lm_head is stored and the config does not tie it to the embedding")
            return True
        if head.shape != embedding.shape:
            raise CannotRun(f"the embedding is {_shape(embedding.shape)} but lm_head is {_shape(head.shape)}")
        return same_bytes(head.parts[0], embedding.parts[0])

    def _left_out(self, name: str) -> bool:
        """Whether a stored tensor is the norm of a block that its layer no longer has."""
        path = name.rpartition(".")[0]
        return isinstance(dict(self.model.named_modules()).get(path), nn.Identity)

    def _unused(self, wanted: set[str]) -> list[str]:
        live_buffers = {name for name, _ in self.model.named_buffers()}
        unused = sorted(
            source.parts[0].name
            for name, source in self.sources.items()
            if name not in wanted
            and name not in live_buffers
            and source.parts[0].kind != "buffer"
            and not is_leftover(name)
            and not self._left_out(name)
        )
        adapters = [name for name in unused if "lora_" in name]
        if adapters:
            count = _count(adapters, "adapter tensor is", "adapter tensors are")
            return [
                f"{count} stored unmerged and not run: what follows is the base model ({_some(adapters, verb=False)})"
            ]
        if not unused:
            return []
        return [f"{_count(unused, 'stored tensor', 'stored tensors')} not used: {_some(unused, verb=False)}"]


def is_leftover(name: str) -> bool:
    """Whether a stored tensor is a buffer that older versions saved and that is computed anew."""
    return name.endswith(_LEFTOVERS)


def restate(module: Any, leaf: str, shape: torch.Size) -> None:
    """Makes a module say the sizes that its parameter ``leaf`` has by now."""
    if leaf != "weight":
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(shape)


def _resizable(geometry: Geometry, sources: dict[str, Source]) -> set[str]:
    """Live names whose size is measured per layer: projections with their biases, q/k norms, sinks, experts."""
    stored: set[str | None] = set()
    blocks = []
    for layer in geometry.layers:
        a, m = layer.attention, layer.mlp
        if a.kind == "full":
            projections = [a.q, a.k, a.v, a.o, a.fused]
            for norm in (a.q_norm, a.k_norm):
                if norm is not None:
                    stored |= {norm.tensor, norm.tensor.removesuffix("weight") + "bias"}
            blocks.append(a.path + ".sinks")
        else:
            projections = []
        projections += [m.gate, m.up, m.down, m.fused]
        for expert in m.experts:
            projections += [expert.gate, expert.up, expert.down, expert.fused]
        for projection in projections:
            if projection is not None:
                stored |= {projection.tensor, projection.bias_tensor}
    stored |= set(blocks)
    return {name for name, source in sources.items() if source.parts[0].name in stored}


def _refuse_trained_copies(checkpoint: Checkpoint) -> None:
    """Nothing; raises CannotRun for peft's ``modules_to_save``, which stores the base and the trained weights."""
    copies = [name for name in checkpoint.tensors if "modules_to_save." in name]
    if copies:
        raise CannotRun(
            f"{_count(copies, 'tensor was', 'tensors were')} trained beside the base model (modules_to_save): "
            f"{_some(copies, verb=False)}; merge first: model = model.merge_and_unload()",
            supported=False,
        )


def _settle_buffers(model: Any, sources: dict[str, Source], *, keep: bool) -> list[str]:
    """Sentences on stored buffers that differ from the ones computed anew; with ``keep`` the stored values then stay.

    A rounded buffer is never kept: rounding is what ``model.half()`` did to it.

    Raises:
        CannotRun: with ``keep``, a stored buffer has another length than the layer's head_dim needs.
    """
    found: dict[str, str] = {}
    live = dict(model.named_buffers())
    rotary = [name for name in live if name.endswith("rotary_emb.inv_freq")]
    shared = rotary[0] if len(rotary) == 1 else None
    with WeightReader() as reader:
        for name, source in sources.items():
            info = source.parts[0]
            target = name
            if name not in live and name.endswith("rotary_emb.inv_freq") and shared:
                target = shared  # to 4.47 every layer had its own
            if target not in live or not is_floating(info.dtype) or info.storage is None or info.numel > 1 << 20:
                continue
            leaf = name.rpartition(".")[2]
            if leaf in found:
                continue
            stored, computed = reader.read(info, dtype=torch.float32), live[target]
            sentence = _difference(stored, computed)
            if not sentence:
                continue
            if leaf.endswith("inv_freq") and sentence.startswith("differs"):
                sentence += " (are its rope settings the model's?)"
            if keep and stored.shape != computed.shape:
                raise CannotRun(f"{info.name} {sentence}: cut it with the heads, or build it anew")
            if keep and not sentence.startswith("is rounded"):
                computed.copy_(stored)
                found[leaf] = f"{leaf} in the file {sentence}; the file's was kept"
            else:
                found[leaf] = f"{leaf} in the file {sentence}; it was computed anew"
    copies = {f"original_{leaf}" for leaf in found}  # transformers keeps a second copy: one sentence is enough
    return [sentence for leaf, sentence in sorted(found.items()) if leaf not in copies]


def _adopt_attributes(model: Any, checkpoint: Checkpoint, geometry: Geometry) -> list[str]:
    """Sentences on numbers that a pickled module carries and its forward reads, where the config gives another."""
    if [layer.index for layer in geometry.layers] != list(range(len(geometry.layers))):
        return []
    live = dict(model.named_modules())
    found: dict[str, str] = {}
    for path, info in checkpoint.modules.items():
        module = live.get(clean(path))
        for name in _READ_BY_FORWARD:
            stored, built = info.attributes.get(name), getattr(module, name, None)
            if _is_number(stored) and isinstance(built, float) and stored != built:
                setattr(module, name, stored)
                found.setdefault(name, f"{name} of {path} is {stored:g} where the config gives {built:g}")
    return [f"{sentence}; the module's was kept" for sentence in found.values()]


def _is_number(value: object) -> bool:
    """Whether a module attribute is a number that a forward pass would multiply by; NaN is one, and shows."""
    return isinstance(value, float) or (type(value) is int and value.bit_length() < 64)


def _difference(stored: torch.Tensor, computed: torch.Tensor) -> str:
    """What sets a stored buffer apart from the computed one, "" when they are equal."""
    if stored.shape != computed.shape:
        return f"has shape {_shape(tuple(stored.shape))} where the config gives {_shape(tuple(computed.shape))}"
    computed = computed.float()
    most = (stored - computed).abs().max().item() if stored.numel() else 0.0
    if most == 0.0:
        return ""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(computed.to(dtype).float(), stored):
            return f"is rounded to {str(dtype).removeprefix('torch.')}, by up to {most:.3g}"
    return f"differs by up to {most:.3g} from what the config gives"


def choose_experts(model: Any) -> list[str]:
    """The loop over experts where torch's grouped product does not take their weights.

    It wants rows of 16 bytes, of the weights and of what they are multiplied with, and knows no float64.
    """
    experts = [parameter for name, parameter in model.named_parameters() if parameter.dim() == 3 and "experts" in name]
    odd = [size for each in experts for size in each.shape[:0:-1] if size * each.element_size() % _GROUPED_BYTES]
    if odd:
        why = f"experts of width {odd[0]} do not fit torch's grouped product"
    elif any(each.dtype not in _GROUPED_DTYPES for each in experts):
        why = f"torch's grouped product of experts knows no {str(experts[0].dtype).removeprefix('torch.')}"
    else:
        return []
    model.set_experts_implementation("eager")
    return [f"{why}: they are run one by one"]


def _scan(model: Any) -> None:
    """Nothing; raises CannotRun when a tensor was left without values or in the wrong place."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise CannotRun(f"{name} was left without values by the rebuild")


def path_of(model: Any, module: Any) -> str:
    """Where in ``model`` its embedding or lm_head stands.

    Raises:
        CannotRun: it has none.
    """
    for path, candidate in model.named_modules():
        if candidate is module:
            return str(path)
    raise CannotRun(f"{type(model).__name__} has no embedding or lm_head where they are expected")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _count(names: list[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"


def _it(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _some(names: list[str], *, verb: bool = True) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{more}" + ((" is" if len(names) == 1 else " are") if verb else "")
