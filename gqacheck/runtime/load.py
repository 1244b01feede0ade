"""``load_model``: a pruned checkpoint as a real transformers model, whatever its file is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from gqacheck.runtime.running import check_device, choose_dtype, require_run_extra


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str | None = "cpu",
    dtype: str | None = None,
    device_map: Any = None,
    tokenizer: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    family: str | None = None,
    head_dim: int | None = None,
) -> tuple[Any, Any]:
    """The checkpoint as (model, tokenizer): the stock transformers class at the sizes that are stored.

    Works where ``from_pretrained`` cannot (layers of different shape, 4.x whole-module pickles under transformers 5)
    and runs no code of the file. The tokenizer is None when the checkpoint has none (with a warning when it has one
    that cannot be used). dtype: None is the file's own on a GPU and float32 on a CPU; ``auto`` is the file's own
    everywhere. device_map: as in ``accelerate`` (``"auto"``), in place of ``device``. head_dim: how wide a head is,
    where nothing in the checkpoint says so::

        >>> model, tokenizer = load_model("pytorch_model.bin")
        >>> tokenizer.decode(model.generate(**tokenizer("The model", return_tensors="pt"))[0])

    Raises:
        ReadError: the file, or the tokenizer that was named, cannot be read.
        CannotRun: the model cannot be rebuilt, with the reason.
        UsageError: no such device, dtype, family or head_dim.
        MissingDependency: torch, transformers or (for device_map) accelerate is not installed.
    """
    require_run_extra("load_model")
    from gqacheck.formats import open_checkpoint
    from gqacheck.geometry.measure import measure
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.saving import warn_on_saving
    from gqacheck.runtime.tokenizer import MissingTokenizer, open_tokenizer

    where = check_device("cpu" if device_map is not None else device)
    checkpoint = open_checkpoint(os.fspath(path), config=None if config is None else os.fspath(config))
    geometry = measure(checkpoint, family=family, head_dim=head_dim)
    wanted = choose_dtype(checkpoint, dtype, where if device_map is None else _best_device(device_map))
    found = None
    if tokenizer is not None or checkpoint.tokenizer is not None:
        try:
            found = open_tokenizer(checkpoint, None if tokenizer is None else os.fspath(tokenizer))
        except MissingTokenizer as error:  # the model is worth having without it
            warnings.warn(f"load_model: {error}".replace("--tokenizer", "tokenizer="), stacklevel=2)
    with quiet_and_offline():
        rebuilt = rebuild(checkpoint, geometry, dtype=wanted, device=where)
        model = rebuilt.model
        model.config.architectures = [type(model).__name__]
        model.config.name_or_path = model.name_or_path = os.fspath(path)  # as from_pretrained does; peft writes it down
        adopt_generation_config(model, checkpoint.generation_config)
        warn_on_saving(model)
        if device_map is not None:
            model = dispatch(model, device_map)
    for note in rebuilt.notes:  # outside of the quiet part: whoever uses the model must hear what is not as stored
        warnings.warn(f"load_model: {note}", stacklevel=2)
    return model, found


def adopt_generation_config(model: Any, info: Any) -> None:
    """The checkpoint's generation settings on the model, where they can be read."""
    if info is None:
        return
    from transformers import GenerationConfig

    from gqacheck.runtime.configure import plain_copy

    values = {key: value for key, value in plain_copy(info.values).items() if not key.startswith("_")}
    values.pop("transformers_version", None)
    try:
        model.generation_config = GenerationConfig.from_dict(values)
    except Exception:  # settings of another version: the class's own defaults stay
        return


def _best_device(device_map: Any) -> str:
    """``cuda`` when the map may put a layer on a GPU, ``cpu`` when not: it decides the default dtype."""
    import torch

    if isinstance(device_map, Mapping):
        on_cpu = all(str(place) in ("cpu", "disk") for place in device_map.values())
    else:
        on_cpu = device_map == "cpu" or not torch.cuda.is_available()
    return "cpu" if on_cpu else "cuda"


def dispatch(model: Any, device_map: Any) -> Any:
    """``model`` over the devices that ``device_map`` names, as ``accelerate`` does it. Raises MissingDependency."""
    from gqacheck.errors import MissingDependency

    try:
        from accelerate import dispatch_model, infer_auto_device_map
    except ModuleNotFoundError as error:
        raise MissingDependency("device_map", "run") from error
    if isinstance(device_map, str):
        if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
            return model.to(check_device(device_map))
        device_map = infer_auto_device_map(model, no_split_module_classes=list(model._no_split_modules or ()))
    return dispatch_model(model, device_map=device_map)
