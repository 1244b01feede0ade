"""A checkpoint without a class to hold it against: its tensors under clean names, its config with measured sizes."""

from __future__ import annotations

import os
import re

from gqacheck.checkpoint import Container, TensorInfo
from gqacheck.export.config import plain_values
from gqacheck.export.content import Planned, Stored
from gqacheck.export.facts import CannotExport, Form
from gqacheck.export.form import Wanted, main_dtype
from gqacheck.geometry.names import clean
from gqacheck.text import printable

_AROUND = re.compile(r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.|base_model\.model\.)+")
_MAX_CODE = 1 << 22


def as_stored(wanted: Wanted) -> Form:
    """Every tensor under the name that the family's own code gives it.

    Raises:
        CannotExport: two tensors have one name, or one holds no real numbers.
    """
    from gqacheck.geometry.facts import Subject
    from gqacheck.repair.config import mend_config
    from gqacheck.runtime.rebuild import is_leftover
    from gqacheck.runtime.weights import is_floating

    checkpoint, geometry = wanted.checkpoint, wanted.geometry
    edits = mend_config(Subject(checkpoint, geometry))
    if edits is None:
        raise CannotExport("the checkpoint carries no config: give it with --config FILE")
    tensors: dict[str, Planned] = {}
    for stored, info in checkpoint.tensors.items():
        name = _AROUND.sub("", clean(stored))
        if is_leftover(name):
            continue
        if name in tensors:
            raise CannotExport(f"two stored tensors are called {printable(name)} without the wrappers around them")
        if geometry.lm_head is not None and wanted.tied and stored == geometry.lm_head.tensor:
            continue
        tensors[name] = Planned(name, info.shape, _dtype(info, wanted.dtype, is_floating(info.dtype)), (Stored(info),))
    made = tuple(tensors.values())
    dtype = main_dtype(made)
    config = plain_values(edits.values) | {"dtype": dtype, "torch_dtype": dtype, "tie_word_embeddings": wanted.tied}
    code = _own_code(checkpoint.root) if checkpoint.own_code and checkpoint.container is Container.FOLDER else {}
    if not code:
        config.pop("auto_map", None)
    return Form("as-stored", config, made, why=_why(wanted, bool(code)), code=code)


def _why(wanted: Wanted, code: bool) -> str:
    family = wanted.geometry.family
    if family.attention == "mla":
        return f"{family.name} has latent attention, which is not rebuilt here"
    name = "this family" if family.generic else family.name
    stated = wanted.geometry.config.get("model_type")
    if isinstance(stated, str) and _has_class(stated):
        return f"{printable(stated)} is not among the families that are rebuilt here, so only its tensors are compared"
    with_what = "with the code that lies in its folder" if code else "with the code that its authors publish"
    return f"transformers has no class of its own for {name}, which runs {with_what}"


def _has_class(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _dtype(info: TensorInfo, asked: str | None, floating: bool) -> str:
    return asked if asked is not None and floating else info.dtype


def _own_code(folder: str) -> dict[str, str]:
    """The Python files of a model folder, as text that ``write_beside`` turns into the same bytes again."""
    found: dict[str, str] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.endswith(".py") and entry.is_file() and entry.stat().st_size <= _MAX_CODE:
            with open(entry.path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
                found[entry.name] = stream.read()
    return found
