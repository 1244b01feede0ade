"""Tensor names: wrappers seen through, the layer list found, every name split into (layer, name inside the layer)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gqacheck.checkpoint import ModuleInfo, TensorInfo
from gqacheck.errors import NotACheckpoint

LAYER_WORDS = frozenset({"layers", "h", "blocks", "block", "layer", "decoder_layers"})
"""Names under which decoders keep their list of layers."""

TOWERS = frozenset(
    {
        "vision_tower", "vision_model", "vision_encoder", "vision", "visual", "visual_encoder", "vit", "image_encoder",
        "image_tower", "img_processor", "embed_tokens_extend", "vision_embed_tokens", "vision_embedder", "embed_vision",
        "audio_tower", "audio_model", "audio_encoder", "audio", "speech_encoder", "embed_audio", "audio_projector",
        "multi_modal_projector", "mm_projector", "mlp1", "connector", "resampler", "aligner", "perceiver",
        "image_newline", "vpm", "apm", "tts", "vision_backbone", "vision_adapter", "sam_model", "siglip", "clip",
        "talker", "token2wav", "code2wav", "encoder_projector", "projector",
    }
)  # fmt: skip
"""First names of what stands beside a language model in a multimodal one."""

SIDE_MODELS = frozenset({"mtp", "mtp_layers", "medusa_head", "draft_model", "ema", "ema_model", "teacher", "model_ema"})
"""Parts that repeat the layers' names without being the model: multi-token prediction, drafts, averaged copies."""

_USUAL_LISTS = ("model.layers", "transformer.h", "transformer.encoder.layers", "language_model.layers")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module")
_WRAPPER_SET = frozenset(_WRAPPERS)
_MAX_DIGITS = 6
MOST_LISTS = 1_000
MOST_LAYERS = 10_000
"""More than these is no model, and would only cost time."""


def clean(name: str) -> str:
    """``name`` without the modules that torch.compile, FSDP, checkpointing and peft put in between.

    >>> clean("model.layers.0._orig_mod.self_attn.q_proj.base_layer.weight")
    'model.layers.0.self_attn.q_proj.weight'
    """
    for word in _WRAPPERS:
        if word in name:
            return ".".join(part for part in name.split(".") if part not in _WRAPPER_SET)
    return name


def is_adapter(name: str) -> bool:
    """Whether a tensor belongs to an unmerged adapter (LoRA and relatives) rather than to the model."""
    return (  # one expression per word: this is asked of every tensor
        "lora_" in name or ".ia3_" in name or ".vera_" in name or "prompt_encoder" in name or "modules_to_save." in name
    )


def layer_number(text: str) -> int | None:
    """The layer index that ``text`` spells, None when it spells none (or an absurd one)."""
    if len(text) > _MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    return None if len(text) > 1 and text[0] == "0" else int(text)


@dataclass(slots=True)
class LayerList:
    """All tensors below one list of layers: ``layers[index][name inside the layer]``.

    path: cleaned path of the list. stored: the path as the file spells it. count: tensors. doubles: names that
    came twice after cleaning.
    """

    path: str
    stored: str
    layers: dict[int, dict[str, TensorInfo]] = field(default_factory=dict)
    count: int = 0
    doubles: list[str] = field(default_factory=list)

    @property
    def parts(self) -> frozenset[str]:
        """The components of the path."""
        return frozenset(self.path.split("."))

    def put(self, index: int, rest: str, tensor: TensorInfo) -> None:
        """Files one tensor under its layer."""
        layer = self.layers.get(index)
        if layer is None:
            layer = self.layers[index] = {}
        if rest in layer:
            self.doubles.append(tensor.name)
        else:
            layer[rest] = tensor
        self.count += 1


@dataclass(slots=True)
class Names:
    """A checkpoint's tensors by place: layer lists, the rest (cleaned name -> tensor), and adapters' tensors."""

    lists: dict[str, LayerList] = field(default_factory=dict)
    outside: dict[str, TensorInfo] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)


def sort_names(tensors: Iterable[TensorInfo]) -> Names:
    """Every tensor under its layer list, or outside of all; one pass, no regular expression.

    Raises
        NotACheckpoint: absurdly many lists.
    """
    names = Names()
    known: list[tuple[str, int, LayerList]] = []
    numbers: dict[str, int | None] = {}
    for tensor in tensors:
        name = clean(tensor.name)
        if is_adapter(name):
            names.adapters.append(tensor.name)
            continue
        for prefix, start, group in known:
            if name.startswith(prefix):
                number, _, rest = name[start:].partition(".")
                if number not in numbers:
                    numbers[number] = layer_number(number)
                index = numbers[number]
                if index is not None and rest:
                    group.put(index, rest, tensor)
                    break
        else:
            place = _place(name)
            if place is None:
                names.outside.setdefault(name, tensor)
                continue
            path, index, rest = place
            found = names.lists.get(path)
            if found is None:
                found = names.lists[path] = LayerList(path, _stored_path(tensor.name, path))
                if len(known) < 8:
                    known.append((path + ".", len(path) + 1, found))
                if len(names.lists) > MOST_LISTS:
                    raise NotACheckpoint(f"more than {MOST_LISTS:,} lists of layers: this is not one model")
            found.put(index, rest, tensor)
    return names


def _place(name: str) -> tuple[str, int, str] | None:
    parts = name.split(".")
    for i in range(1, len(parts) - 1):
        if parts[i - 1] in LAYER_WORDS:
            index = layer_number(parts[i])
            if index is not None:
                return ".".join(parts[:i]), index, ".".join(parts[i + 1 :])
    return None


def _stored_path(raw: str, cleaned_path: str) -> str:
    """The part of ``raw`` that cleans to ``cleaned_path``."""
    wanted = cleaned_path.count(".") + 1
    kept = []
    for part in raw.split("."):
        kept.append(part)
        if part not in _WRAPPER_SET:
            wanted -= 1
            if not wanted:
                break
    return ".".join(kept)


def text_layers(lists: Mapping[str, LayerList]) -> LayerList | None:
    """The language model's list of layers: no tower and no side model, under a usual name, the largest.

    Raises
        NotACheckpoint: absurdly many layers.
    """
    candidates = [group for group in lists.values() if not group.parts & TOWERS and not group.parts & SIDE_MODELS]
    chosen = min(candidates, key=_least_like_a_decoder, default=None)
    if chosen is not None and len(chosen.layers) > MOST_LAYERS:
        raise NotACheckpoint(f"{len(chosen.layers):,} layers under one list: gqacheck looks at {MOST_LAYERS:,} at most")
    return chosen


def _least_like_a_decoder(group: LayerList) -> tuple[bool, int, int, str]:
    usual = group.path == "layers" or group.path.endswith(_USUAL_LISTS)
    return (not usual, -group.count, len(group.path), group.path)


def clean_modules(modules: Mapping[str, ModuleInfo]) -> Mapping[str, ModuleInfo]:
    """Modules by cleaned path; of a wrapper and what it wraps, the wrapped one counts."""
    if not any(word in path for path in modules for word in _WRAPPERS):
        return modules
    result: dict[str, ModuleInfo] = {}
    for path in sorted(modules, key=len):
        result[clean(path)] = modules[path]
    return result
