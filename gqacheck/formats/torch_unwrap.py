"""Where the model lies in what torch.save was given: a module, a state dict, or a dict around one of them."""

from __future__ import annotations

from gqacheck.formats.pickle_values import Obj, Value
from gqacheck.formats.torch_modules import is_module
from gqacheck.formats.torch_plain import class_path, mapping_of, shown_keys
from gqacheck.formats.torch_tensors import is_tensor
from gqacheck.formats.torch_tokenizers import is_tokenizer

MODEL_KEYS = ("model", "state_dict", "model_state_dict", "module", "model_state", "net", "network", "weights", "params")
AVERAGE_KEYS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema", "swa_model")
KNOWN_ENTRIES = {
    "optimizer": "optimizer state", "optimizers": "optimizer state", "optimizer_state_dict": "optimizer state",
    "optimizer_states": "optimizer state", "lr_scheduler": "scheduler state", "scheduler": "scheduler state",
    "lr_schedulers": "scheduler state", "scheduler_state_dict": "scheduler state", "rng_state": "random state",
    "scaler": "gradient scaler state",
}  # fmt: skip
_NESTED = 3


class Finder:
    """Looks for the model in one object graph. Remembers which dicts hold tensors, since a graph may name one often."""

    def __init__(self) -> None:
        self._holders: dict[int, bool] = {}

    def holds_tensors(self, value: Value) -> bool:
        """Whether the value is a dict with a tensor directly in it."""
        pairs = mapping_of(value)
        if not pairs:
            return False
        known = self._holders.get(id(pairs))
        if known is None:
            known = self._holders[id(pairs)] = any(is_tensor(entry) for entry in pairs.values())
        return known

    def is_state_dict(self, pairs: dict[Value, Value]) -> bool:
        """Whether names stand beside tensors, tensors are no exception among them, and no model lies beside them."""
        if not self.holds_tensors(pairs):
            return False
        if any(key in pairs and self._plausible(pairs[key], 0) for key in MODEL_KEYS):
            return False
        n_tensors = sum(1 for value in pairs.values() if is_tensor(value))
        return 2 * n_tensors >= len(pairs) or any(type(key) is str and key.endswith(".weight") for key in pairs)

    def model_key(self, pairs: dict[Value, Value]) -> str | None:
        """The key under which the model lies; None when nothing looks like one."""
        for key in (*MODEL_KEYS, *AVERAGE_KEYS):
            if key in pairs and self._plausible(pairs[key], 0):
                return key
        if "param_groups" in pairs:
            return None
        modules = [key for key, value in pairs.items() if type(key) is str and is_module(value)]
        if modules:
            return modules[0] if len(modules) == 1 else None
        dicts = [
            key
            for key, value in pairs.items()
            if type(key) is str and key not in KNOWN_ENTRIES and self.holds_tensors(value)
        ]
        return dicts[0] if len(dicts) == 1 else None

    def _plausible(self, value: Value, depth: int) -> bool:
        if is_module(value) or self.holds_tensors(value):
            return True
        inner = mapping_of(value)
        if inner is None or depth == _NESTED:
            return False
        return any(key in inner and self._plausible(inner[key], depth + 1) for key in MODEL_KEYS)


def wrapped_module(value: Value) -> tuple[str, Obj] | None:
    """The one module inside DataParallel, DistributedDataParallel or torch.compile, after the name it has there."""
    name = (class_path(value) or "").rpartition(".")[2]
    if name == "OptimizedModule" and type(value) is Obj and value.args and is_module(value.args[0]):
        return "_orig_mod", value.args[0]
    if "Parallel" not in name or not is_module(value):
        return None
    children = mapping_of(value.state.get("_modules"))
    if not children or len(children) != 1 or not is_module(children.get("module")):
        return None
    return "module", children["module"]


def noun(value: Value) -> str:
    """What a value is, in two or three words."""
    if value is None or type(value) in (bool, int, float):
        return str(value)
    if type(value) is Obj:
        path = class_path(value)
        return f"an object of class {path[:120]}" if path else "an object"
    return f"a value of type {type(value).__name__}"


def describe(value: Value) -> str:
    """What an object that is no model is, for a person: ``an optimizer state``, ``a list of 3 entries``, …"""
    if is_tensor(value):
        return "a single tensor"
    pairs = mapping_of(value)
    if pairs is None:
        if type(value) in (list, tuple):
            return f"a {type(value).__name__} of {len(value)} entries"
        if is_tokenizer(value):
            return f"a tokenizer ({class_path(value)})"
        if (class_path(value) or "").endswith("TrainingArguments"):
            return f"training arguments ({class_path(value)})"
        return noun(value)
    keys = {key for key in pairs if type(key) is str}
    if {"state", "param_groups"} <= keys:
        return "an optimizer state"
    if "optimizer_state_dict" in keys and keys & {"zero_stage", "ds_config", "ds_version"}:
        return "a DeepSpeed ZeRO optimizer shard"
    if {"last_epoch", "_step_count"} <= keys or "base_lrs" in keys:
        return "a learning-rate scheduler state"
    if keys and keys <= {"python", "numpy", "cpu", "cuda", "xla", "npu", "mps"}:
        return "a random-number state"
    if not pairs:
        return "an empty dict"
    classes = {class_path(entry) for entry in pairs.values()}
    if len(classes) == 1 and None not in classes:
        return f"a dict of {len(pairs)} objects of class {next(iter(classes))}"
    return f"a dict with the keys {shown_keys(pairs)}"
