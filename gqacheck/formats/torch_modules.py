"""A pickled ``nn.Module`` tree: every module's class and plain attributes, and every tensor under its full name."""

from __future__ import annotations

from gqacheck.checkpoint import ModuleInfo, Plain, TensorInfo
from gqacheck.errors import ReadError
from gqacheck.formats.pickle_values import Obj, Value
from gqacheck.formats.torch_file import Ignored
from gqacheck.formats.torch_plain import attributes_of, class_path, mapping_of
from gqacheck.formats.torch_tensors import TensorReader, is_tensor

MAX_MODULES = 120_000
"""Paths in the tree; a module that is shared is counted at each path."""
MAX_DEPTH = 64
MAX_ENTRIES = 2_000_000
"""Parameters, buffers, children and attribute values that are looked at."""
MAX_PATH = 1000
"""Characters of one full name."""


def is_module(value: Value) -> bool:
    """Whether the value is an object with the state of an ``nn.Module``, whatever its class is called."""
    if type(value) is not Obj:
        return False
    state = value.state
    return type(state) is dict and "_parameters" in state and "_modules" in state


class ModuleReader:
    """Walks one module tree into ``modules`` and ``tensors``; what cannot be followed goes to ``ignored``."""

    def __init__(self, tensors: TensorReader, ignored: Ignored) -> None:
        self._reader = tensors
        self._ignored = ignored
        self._left = MAX_ENTRIES
        self.modules: dict[str, ModuleInfo] = {}
        self.tensors: dict[str, TensorInfo] = {}

    def walk(self, root: Obj) -> None:
        """Read the tree under ``root``, parents before children, in the order of the pickle.

        Raises ReadError when the tree is cyclic, too deep, too large, or holds what no module can hold.
        """
        pending: list[tuple[str, Obj, int]] = [("", root, 0)]
        attributes: dict[int, ModuleInfo] = {}
        while pending:
            path, module, depth = pending.pop()
            if depth > MAX_DEPTH:
                raise ReadError(f"modules are nested more than {MAX_DEPTH} deep at {path[:80]}…; the tree is cyclic")
            if len(self.modules) >= MAX_MODULES:
                raise ReadError(f"the pickle describes more than {MAX_MODULES} modules")
            if len(path) > MAX_PATH:
                raise ReadError(f"a module has a name of {len(path)} characters: {path[:80]}…")
            state = module.state
            self._charge(len(state))
            known = attributes.get(id(module))
            if known is None:
                known = attributes[id(module)] = ModuleInfo(
                    path, class_path(module) or "unknown", self._attributes(state)
                )
                self.modules[path] = known
            else:
                self.modules[path] = ModuleInfo(path, known.class_name, known.attributes)
            self._tensors(path, state, "_parameters", "parameter")
            self._tensors(path, state, "_buffers", "buffer")
            children = self._entries(path, state, "_modules")
            for name in reversed(children):
                child = children[name]
                if child is None:
                    continue
                child_path = f"{path}.{name}" if path else name
                if is_module(child):
                    pending.append((child_path, child, depth + 1))
                elif type(child) is Obj:
                    self._ignored.add(f"{child_path}: a {class_path(child)} that is stored as no plain nn.Module")
                else:
                    raise ReadError(f"module {child_path} is a value of type {type(child).__name__}")

    def _charge(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise ReadError(f"the modules of the pickle have more than {MAX_ENTRIES} entries")

    def _attributes(self, state: dict[Value, Value]) -> dict[str, Plain]:
        attributes = attributes_of(state)
        self._charge(sum(len(value) for value in attributes.values() if type(value) is tuple))
        return attributes

    def _entries(self, path: str, state: dict[Value, Value], key: str) -> dict[str, Value]:
        found = state.get(key)
        if found is None and key == "_buffers":
            return {}
        entries = mapping_of(found)
        if entries is None:
            raise ReadError(f"module {path or '(root)'}: its {key} is no dict but of type {type(found).__name__}")
        self._charge(len(entries))
        for name in entries:
            if type(name) is not str:
                raise ReadError(f"module {path or '(root)'}: {key} has a key that is no text")
            if len(name) > MAX_PATH:
                raise ReadError(f"module {path or '(root)'}: {key} has a key of {len(name)} characters")
        return entries

    def _tensors(self, path: str, state: dict[Value, Value], key: str, kind: str) -> None:
        for name, value in self._entries(path, state, key).items():
            if value is None:
                continue
            full = f"{path}.{name}" if path else name
            if is_tensor(value):
                self.tensors[full] = self._reader.tensor(full, value, "parameter" if kind == "parameter" else "buffer")
                remark = self._reader.remark(value)
                if remark:
                    self._ignored.add(f"{full}: {remark}")
            elif type(value) is Obj:
                self._ignored.add(f"{full}: a {class_path(value)}, not a tensor that can be read without running code")
            else:
                raise ReadError(f"{full} is a value of type {type(value).__name__} where a tensor belongs")
