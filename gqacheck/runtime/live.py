"""A live ``nn.Module`` as facts, so that the static rules can judge it before it is saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gqacheck.checkpoint import Checkpoint, ConfigInfo, Container, ModuleInfo, Plain, StorageInfo, TensorInfo
from gqacheck.errors import ReadError, UsageError
from gqacheck.lineage.cast import ITEMSIZE
from gqacheck.lineage.matrix import Matrix

_MAX_SEQUENCE = 4096
_MAX_DEPTH = 16


def describe_model(model: Any) -> Checkpoint:
    """The facts of a live module: tensors, modules with their plain attributes, config. No weight is read or moved.

    ``DistributedDataParallel``, ``torch.compile``, FSDP and activation-checkpointing wrappers and peft adapters are
    seen through; tensors on ``meta`` will do.

    Raises:
        UsageError: it is not an ``nn.Module``.
    """
    started = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise UsageError(f"expected a torch.nn.Module, got {type(model).__name__}")
    root = _unwrap(model)
    tensors: dict[str, TensorInfo] = {}
    modules: dict[str, ModuleInfo] = {}
    seen: set[int] = set()
    for path, module in _walk(root, ""):
        modules[path] = ModuleInfo(path, _class_name(module), _attributes(module))
        for kind, entries in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, tensor in entries.items():
                if isinstance(tensor, torch.Tensor):
                    seen.add(id(tensor))
                    full = f"{path}.{name}" if path else name
                    tensors[full] = _tensor(full, tensor, "parameter" if kind == "parameter" else "buffer")
    config = _config(getattr(root, "config", None), "model.config")
    outside = sum(1 for parameter in model.parameters() if id(parameter) not in seen)
    ignored = (f"{outside} parameters of adapters were left out: the base weights are checked",) if outside else ()
    distinct = {t.storage.key: t.storage.nbytes for t in tensors.values() if t.storage is not None}
    return Checkpoint(
        path="live model",
        root="",
        format="live-module",
        container=Container.MODULE,
        tensors=tensors,
        modules=modules,
        config=config,
        generation_config=_config(getattr(root, "generation_config", None), "model.generation_config"),
        ignored=ignored,
        quantization=_quantization(root, tensors, config),
        file_bytes=sum(distinct.values()),
        seconds=time.perf_counter() - started,
    )


def live_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that ``describe_model(model)`` describes, by the names that it gives them."""
    tensors: dict[str, torch.Tensor] = {}
    for path, module in _walk(_unwrap(model), ""):
        for entries in (module._parameters, module._buffers):
            for name, tensor in entries.items():
                if isinstance(tensor, torch.Tensor):
                    tensors[f"{path}.{name}" if path else name] = tensor
    return tensors


def live_samples(model: Any) -> Callable[[Matrix, Sequence[int]], list[bytes]]:
    """A reader of sampled lines for ``trace_lineage``, of the tensors that ``describe_model(model)`` names."""
    tensors = live_tensors(model)

    def samples(matrix: Matrix, window: Sequence[int]) -> list[bytes]:
        tensor = tensors[matrix.info.name].detach()
        if matrix.info.storage is None or tensor.is_meta or matrix.info.dtype not in ITEMSIZE:
            raise ReadError(f"{matrix.info.name} holds no numbers that could be compared")
        if not matrix.n_lines or not window:
            return [b""] * matrix.n_lines
        size = (max(matrix.lines) + 1, max(matrix.elements) + 1)
        whole = tensor.as_strided(size, (matrix.line_stride, matrix.stride), matrix.base)
        lines = torch.tensor(list(matrix.lines), device=tensor.device)
        columns = torch.tensor([matrix.elements[element] for element in window], device=tensor.device)
        picked = whole[lines[:, None], columns[None, :]].contiguous().cpu()
        data, width = picked.view(torch.uint8).numpy().tobytes(), len(window) * picked.element_size()
        return [data[at : at + width] for at in range(0, len(data), width)]

    return samples


def _unwrap(module: nn.Module) -> nn.Module:
    """The module inside whatever was put around it."""
    for _ in range(_MAX_DEPTH):
        inner: Any = None
        children = module._modules
        for name in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"):
            inner = inner if inner is not None else children.get(name)
        if inner is None and isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = module.module
        if inner is None and hasattr(module, "peft_config") and children.get("base_model") is not None:
            tuner: Any = children["base_model"]  # peft: PeftModel.base_model is the tuner, its model is the model
            inner = tuner._modules.get("model") or tuner
        if inner is None and "original_module" in children and "modules_to_save" in children:
            saved: Any = children["modules_to_save"]
            inner = next(iter(saved._modules.values()), children["original_module"])
        if not isinstance(inner, nn.Module):
            return module
        module = inner
    return module


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their paths, wrappers taken out."""
    yield path, module
    for name, child in module._modules.items():
        if child is None:
            continue
        if path.count(".") < 64:
            yield from _walk(_unwrap(child), f"{path}.{name}" if path else name)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _attributes(module: nn.Module) -> Mapping[str, Plain]:
    found: dict[str, Plain] = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        plain, known = _plain(value)
        if known:
            found[name] = plain
    return found


def _plain(value: Any, depth: int = 0) -> tuple[Plain, bool]:
    """The value as plain data, and whether it is any."""
    if value is None or type(value) in (bool, int, float, str):
        return value, True
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch."), True
    if isinstance(value, bool | int | float | str):  # enums, numpy.float64
        kind = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        return getattr(value, "value", None) if type(getattr(value, "value", None)) is kind else kind(value), True
    if not isinstance(value, torch.Tensor) and hasattr(value, "__index__"):  # numpy integers, which pruners count with
        return int(value), True
    if depth >= 4 or not isinstance(value, list | tuple | Mapping) or len(value) > _MAX_SEQUENCE:
        return None, False
    if isinstance(value, Mapping):
        pairs = [(str(key), _plain(item, depth + 1)) for key, item in value.items()]
        return {key: item for key, (item, known) in pairs if known}, True
    items = [_plain(item, depth + 1) for item in value]
    return (tuple(item for item, _ in items), True) if all(known for _, known in items) else (None, False)


def _tensor(name: str, tensor: torch.Tensor, kind: Any) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    try:
        storage = tensor.untyped_storage()
        key, nbytes = f"{storage._cdata:x}", storage.nbytes()
        strides, offset = tuple(tensor.stride()), int(tensor.storage_offset())
        info = StorageInfo("", key, 0, nbytes, nbytes)
    except (RuntimeError, NotImplementedError, AttributeError):  # DTensor, sparse and other tensors without one
        strides, offset, info = _dense_strides(tuple(tensor.shape)), 0, None
    return TensorInfo(name, tuple(tensor.shape), dtype, strides, offset, info, kind)


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))


def _config(config: Any, source: str) -> ConfigInfo | None:
    if config is None:
        return None
    if isinstance(config, Mapping):
        values: Any = config
    else:
        try:
            values = config.to_dict()
        except Exception:  # a config of one's own, or one whose to_dict trips over what a pruner put there
            values = vars(config) if hasattr(config, "__dict__") else {}
    plain, _ = _plain(dict(values))
    model_type = getattr(type(config), "model_type", None)
    found = dict(plain) if isinstance(plain, Mapping) else {}
    if isinstance(model_type, str) and model_type:
        found.setdefault("model_type", model_type)
    return ConfigInfo(found, source, f"{type(config).__module__}.{type(config).__qualname__}")


def _quantization(root: nn.Module, tensors: Mapping[str, TensorInfo], config: ConfigInfo | None) -> str | None:
    for module in root.modules():
        for parameter in module._parameters.values():
            if type(parameter).__name__ in ("Params4bit", "Int8Params"):
                return "bitsandbytes"
    from gqacheck.formats.quantized import detect_quantization

    return detect_quantization(tensors, config)[0]
