"""A family as one dictionary: tensor name inside a layer -> the slot it fills. Compiled once per family."""

from __future__ import annotations

import re
from typing import NamedTuple

from gqacheck.geometry.family import Family


class Slot(NamedTuple):
    """Where a tensor belongs.

    group: ``dense`` (one projection of the layer), ``router``, ``expert``, ``shared``, ``stacked``, ``norm``,
        ``sinks``, ``linear``, ``mla``, ``explained``, ``quantized`` (belongs to a packed weight).
    role: within the group (``q``, ``down``, ``input``). part: ``weight``, ``bias``, ``blocks`` (mxfp4).
    module: module name inside the layer, with ``{e}`` for the expert.
    """

    group: str
    role: str
    part: str
    module: str


class Slots:
    """The compiled names of one family. ``find`` answers for one name inside a layer and remembers."""

    def __init__(self, family: Family, quantized: bool) -> None:
        self._table = _compile(family)
        self._modules = {slot.module: slot for slot in self._table.values()}
        self._quantized = quantized
        self._prefixes = tuple(f"{name}." for name in (*family.linear, *family.explained))
        self._linear = tuple(f"{name}." for name in family.linear)
        self._explained = frozenset(family.explained)
        self._mla = family.attention == "mla"
        self._leftovers = tuple(re.compile(pattern) for pattern in family.leftovers)
        self._seen: dict[str, tuple[Slot, int | None] | None] = {}

    def find(self, name: str) -> tuple[Slot, int | None] | None:
        """The slot of ``name`` with the expert's index where there is one, None when nothing explains it."""
        try:
            return self._seen[name]
        except KeyError:
            found = self._seen[name] = self._find(name)
            return found

    def is_leftover(self, name: str) -> bool:
        """Whether ``name`` (with a leading dot) is one that may be present or absent without a word."""
        return any(pattern.search(name) for pattern in self._leftovers)

    def _find(self, name: str) -> tuple[Slot, int | None] | None:
        slot = self._table.get(name)
        if slot is not None:
            return slot, None
        template, index = _template(name)
        if index is not None:
            slot = self._table.get(template)
            if slot is not None:
                return slot, index
        if name.startswith(self._prefixes) or name in self._explained:
            if name.startswith(self._linear):
                return Slot("linear", "", "", name.partition(".")[0]), None
            group = "mla" if self._mla and name.startswith("self_attn.") else "explained"
            return Slot(group, "", "", name.rpartition(".")[0]), None
        if self._quantized:
            return self._packed(template, index)
        if self.is_leftover("." + name):
            return Slot("explained", "", "", ""), None
        return None

    def _packed(self, template: str, index: int | None) -> tuple[Slot, int | None] | None:
        """The tensors that a quantiser stores around a weight: ``q_proj.qweight``, ``q_proj.weight.absmax``."""
        for suffix in ("_blocks", "_scales"):
            stem = template.removesuffix(suffix)
            if stem != template and stem in self._table:
                slot = self._table[stem]
                if suffix == "_blocks":
                    return slot._replace(part="blocks"), index
                return slot._replace(group="quantized", part=slot.group), index
        module = template
        for _ in range(3):
            module = module.rpartition(".")[0]
            known = self._modules.get(module)
            if known is not None:
                return known._replace(group="quantized", part=known.group), index
        if self.is_leftover("." + template):
            return Slot("explained", "", "", ""), None
        return None


def _template(name: str) -> tuple[str, int | None]:
    """``mlp.experts.17.up_proj.weight`` -> (``mlp.experts.{e}.up_proj.weight``, 17)."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isascii() and part.isdigit() and len(part) <= 6:
            parts[i] = "{e}"
            return ".".join(parts), int(part)
    return name, None


def _compile(family: Family) -> dict[str, Slot]:
    table: dict[str, Slot] = {}

    def add(name: str, slot: Slot) -> None:
        table.setdefault(name, slot)

    def linear(group: str, role: str, module: str) -> None:
        add(f"{module}.weight", Slot(group, role, "weight", module))
        add(f"{module}.bias", Slot(group, role, "bias", module))

    roles = family.roles
    for role in ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up"):
        for module in roles.get(role, ()):
            linear("dense", role, module)
    for module in roles.get("router", ()):
        linear("router", "router", module)
        add(f"{module}.e_score_correction_bias", Slot("router", "router", "bias", module))
        add(f"{module.rpartition('.')[0]}.e_score_correction_bias", Slot("router", "router", "bias", module))
    for name in roles.get("sinks", ()):
        add(name, Slot("sinks", "sinks", "weight", name))
    parts = [(role, name) for role in ("gate", "up", "down") for name in roles.get(f"expert_{role}", ())]
    for path in roles.get("experts", ()):
        for role, name in parts:
            linear("expert", role, f"{path}.{name}")
    for path in roles.get("shared", ()):
        for role, name in parts:
            linear("shared", role, f"{path}.{name}")
    for path in roles.get("stacked", ()):
        for role in ("gate_up", "down"):
            for name in roles.get(f"stacked_{role}", ()):
                add(f"{path}.{name}", Slot("stacked", role, "weight", f"{path}.{name}"))
                add(f"{path}.{name}.weight", Slot("stacked", role, "weight", f"{path}.{name}"))
                add(f"{path}.{name}_bias", Slot("stacked", role, "bias", f"{path}.{name}"))
    for role, names in family.norms.items():
        for module in names:
            linear("norm", role, module)
            if family.qk_norm == "per-head-rows" and role in ("q", "k"):
                linear("norm", role, f"{module}.norms.{{e}}")
    return table
