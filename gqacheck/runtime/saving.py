"""What ``save_pretrained`` cannot say of a model that its stock class would build otherwise: it warns."""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gqacheck.geometry.config import LAYER_LISTS
from gqacheck.runtime.configure import one_line
from gqacheck.runtime.skeleton import construct

_LISTED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
_READ_BY_FORWARD = ("scaling", "variance_epsilon", "eps", "num_key_value_groups", "head_dim")


def warn_on_saving(model: Any) -> None:
    """Makes ``model.save_pretrained`` warn, if plain ``from_pretrained`` would make another model of what it writes."""
    fault = plain_fault(model)
    if fault:
        stock = type(model)
        names = {"__module__": stock.__module__, "__doc__": stock.__doc__, "_fault": fault, "_stock": stock}
        model.__class__ = type(stock.__name__, (_WarnsOnSaving, stock), names)


class _WarnsOnSaving:
    """Mixed into the class of one model. Pickles and copies are of the stock class alone."""

    _fault: str
    _stock: type[Any]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"save_pretrained: {self._fault}; plain from_pretrained cannot load {save_directory}: "
            "`gqacheck export CKPT OUT` makes a folder that it can, of any file that gqacheck reads",
            stacklevel=2,
        )
        with _accepted(self.config):  # type: ignore[attr-defined]
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @property
    def __class__(self) -> type[Any]:  # pickle wants the class that it is told to write
        return self._stock

    @__class__.setter
    def __class__(self, cls: type[Any]) -> None:
        object.__setattr__(self, "__class__", cls)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return copyreg.__newobj__, (self._stock,), self.__dict__  # type: ignore[attr-defined]


@contextmanager
def _accepted(config: Any) -> Iterator[None]:
    """Inside, ``config`` says head counts that its class lets pass when it is written, and the true ones in lists."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception:  # config classes raise whatever they like
        before = dict(vars(config))
        true = [getattr(config, key, None) or 0 for key in _LISTED]
        lists = getattr(config, LAYER_LISTS, None)
        lists = lists or {key: [size] * config.num_hidden_layers for key, size in zip(_LISTED, true, strict=True)}
        heads = config.hidden_size // config.head_dim
        config.__dict__.update(dict.fromkeys(_LISTED[:2], heads), **{LAYER_LISTS: lists})
        try:
            yield
        finally:
            for key in (*_LISTED[:2], LAYER_LISTS):
                if key in before:
                    vars(config)[key] = before[key]
                else:
                    vars(config).pop(key, None)
    else:
        yield


def plain_fault(model: Any) -> str:
    """Why the model's config and its stock class do not make this model, one clause; "" when they do."""
    values = {key: value for key, value in model.config.to_dict().items() if key not in ("dtype", "torch_dtype")}
    try:
        plain = construct(type(model.config).from_dict(values))
    except Exception as error:  # config and model classes raise whatever they like
        return f"{type(model.config).__name__} refuses the sizes of this model ({one_line(error)})"
    ours, theirs = model.state_dict(), plain.state_dict()
    if any(len(set(sizes)) > 1 for sizes in (getattr(model.config, LAYER_LISTS, None) or {}).values()):
        return f"layers differ in size, and {type(model).__name__} makes all of them alike"
    for name in ours.keys() | theirs.keys():
        mine, stock = (tuple(state[name].shape) if name in state else None for state in (ours, theirs))
        if mine != stock:
            return f"{name} is {_shape(mine)} where {type(model).__name__} makes it {_shape(stock)}"
    return _other_numbers(model, plain)


def _other_numbers(model: Any, plain: Any) -> str:
    stock = dict(plain.named_modules())
    for path, module in model.named_modules():
        for name in _READ_BY_FORWARD:
            mine, made = getattr(module, name, None), getattr(stock.get(path), name, None)
            if isinstance(mine, int | float) and isinstance(made, int | float) and mine != made:
                return f"{name} of {path} is {mine:g} where the config gives {made:g}"
    buffers = dict(plain.named_buffers())
    saved = model.state_dict().keys()
    for name, mine in model.named_buffers():
        made = buffers.get(name)
        if made is not None and name not in saved and not torch.equal(mine.to("cpu", made.dtype), made):
            return f"{name} is not the one that the config gives"
    return ""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a number"
