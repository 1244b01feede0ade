"""The object that torch.save was given, as a TorchFile: the model in it, and what else was there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from gqacheck.checkpoint import ConfigInfo, StorageInfo, TensorInfo, TokenizerInfo
from gqacheck.formats.pickle_machine import Unpickled
from gqacheck.formats.pickle_values import Obj, Value
from gqacheck.formats.torch_file import Ignored, TorchFile
from gqacheck.formats.torch_modules import ModuleReader, is_module
from gqacheck.formats.torch_plain import class_path, config_of, generation_config_of, mapping_of
from gqacheck.formats.torch_tensors import StorageId, TensorReader, is_tensor
from gqacheck.formats.torch_tokenizers import is_tokenizer, tokenizer_of
from gqacheck.formats.torch_unwrap import AVERAGE_KEYS, KNOWN_ENTRIES, Finder, describe, noun, wrapped_module

MAX_WRAPPERS = 8
MAX_TOKENIZERS = 4
MAX_CONFIG_SEARCH = 1000
_CONFIG_KEYS = ("config", "model_config", "hf_config", "model_args")


def read_objects(unpickled: Unpickled, locate: Callable[[StorageId], StorageInfo], file: str) -> TorchFile:
    """The facts of the pickled object.

    locate: where the bytes of a storage lie. file: path of the file, for places in it.
    Raises ReadError when the object graph contradicts itself.
    """
    return _Reader(TensorReader(locate), file, tuple(unpickled.globals)).read(unpickled.value)


class _Reader:
    def __init__(self, tensors: TensorReader, file: str, names: tuple[str, ...]) -> None:
        self._tensors = tensors
        self._file = file
        self._names = names
        self._finder = Finder()
        self._ignored = Ignored()
        self._unwrapped: list[str] = []
        self._tokenizer: TokenizerInfo | None = None
        self._tokenizers_tried = 0
        self._config: ConfigInfo | None = None

    def read(self, value: Value) -> TorchFile:
        for _ in range(MAX_WRAPPERS):
            wrapped = wrapped_module(value)
            if wrapped is not None:
                self._unwrapped.append(wrapped[0])
                value = wrapped[1]
                continue
            if is_module(value):
                return self._module(value)
            pairs = mapping_of(value)
            if pairs is None:
                break
            if self._finder.is_state_dict(pairs):
                return self._state_dict(pairs)
            key = self._finder.model_key(pairs)
            if key is None:
                break
            self._look_beside(pairs, key)
            self._unwrapped.append(key)
            value = pairs[key]
        return TorchFile(
            "other",
            describe(value),
            tokenizer=self._tokenizer,
            globals=self._names,
            unwrapped=tuple(self._unwrapped),
            ignored=self._ignored.lines(),
        )

    def _module(self, root: Obj) -> TorchFile:
        walker = ModuleReader(self._tensors, self._ignored)
        walker.walk(root)
        config, generation_config = _configs(root)
        return TorchFile(
            kind="module",
            description=f"a whole module of class {class_path(root)}",
            tensors=walker.tensors,
            modules=walker.modules,
            config=config or self._config,
            generation_config=generation_config,
            tokenizer=self._tokenizer,
            globals=self._names,
            unwrapped=tuple(self._unwrapped),
            defects=tuple(self._tensors.defects),
            ignored=self._ignored.lines(),
        )

    def _state_dict(self, pairs: dict[Value, Value]) -> TorchFile:
        tensors: dict[str, TensorInfo] = {}
        for name, value in pairs.items():
            if type(name) is not str:
                self._ignored.add(f"an entry whose key is of type {type(name).__name__}, not a name")
            elif is_tensor(value):
                tensors[name] = self._tensors.tensor(name, value, "tensor")
                remark = self._tensors.remark(value)
                if remark:
                    self._ignored.add(f"{name[:120]}: {remark}")
            elif value is not None:
                self._ignored.add(f"{name[:120]}: {noun(value)}, not a tensor")
        return TorchFile(
            kind="state-dict",
            description=f"a state dict of {len(tensors)} tensors",
            tensors=tensors,
            config=self._config,
            tokenizer=self._tokenizer,
            globals=self._names,
            unwrapped=tuple(self._unwrapped),
            defects=tuple(self._tensors.defects),
            ignored=self._ignored.lines(),
        )

    def _look_beside(self, pairs: dict[Value, Value], chosen: str) -> None:
        """Take config and tokenizer from beside the model, and tell the rest."""
        for key, value in pairs.items():
            if key == chosen or type(key) is not str:
                continue
            if (key == "tokenizer" and value is not None) or is_tokenizer(value):
                self._try_tokenizer(key, value)
                continue
            if key in _CONFIG_KEYS and self._config is None:
                self._config = config_of(value, "pickled config")
                if self._config is not None:
                    continue
            if value is not None:
                self._ignored.add(f"{key[:120]}: {self._told(key, value, chosen)}")

    def _told(self, key: str, value: Value, chosen: str) -> str:
        if key in KNOWN_ENTRIES:
            return KNOWN_ENTRIES[key]
        if not is_module(value) and not self._finder.holds_tensors(value):
            return noun(value)
        if key in AVERAGE_KEYS:
            return f"an average of the weights (EMA); {chosen!r} is checked"
        return f"weights beside {chosen!r}; only {chosen!r} is checked"

    def _try_tokenizer(self, key: str, value: Value) -> None:
        if self._tokenizer is not None or self._tokenizers_tried == MAX_TOKENIZERS:
            return
        self._tokenizers_tried += 1
        self._tokenizer, why = tokenizer_of(value, self._file)
        if why:
            self._ignored.add(f"{key[:120]}: {why}")


def _configs(root: Obj) -> tuple[ConfigInfo | None, ConfigInfo | None]:
    """The config and the generation config of the model: of the root, else of the module nearest to it."""
    queue = [root]
    generation_config = None
    for module in queue:
        state = module.state
        generation_config = generation_config or generation_config_of(
            state.get("generation_config"), "pickled generation_config"
        )
        config = config_of(state.get("config"), "pickled config")
        if config is not None:
            return config, generation_config
        children = mapping_of(state.get("_modules")) or {}
        room = MAX_CONFIG_SEARCH - len(queue)
        queue += [child for child in islice(children.values(), max(room, 0)) if is_module(child)]
    return None, generation_config
