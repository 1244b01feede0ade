"""A model folder's own code, run without a trace: not in the user's cache of such modules, not in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import dynamic_module_utils as dynamic
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

_PACKAGE = "transformers_modules"


@contextmanager
def own_code_in(folder: str) -> Iterator[None]:
    """Inside, transformers copies the modules of a model folder to ``folder`` and imports them from there.

    Afterwards neither the modules nor the classes that they registered are known to this process.
    """
    cache, path = dynamic.HF_MODULES_CACHE, list(sys.path)
    before = {name: sys.modules.pop(name) for name in _modules()}
    mappings = (CONFIG_MAPPING._extra_content, MODEL_FOR_CAUSAL_LM_MAPPING._extra_content)
    registered = [dict(mapping) for mapping in mappings]
    dynamic.HF_MODULES_CACHE = folder
    try:
        yield
    finally:
        dynamic.HF_MODULES_CACHE = cache
        sys.path[:] = [entry for entry in sys.path if entry != folder or entry in path]
        for name in _modules():
            del sys.modules[name]
        sys.modules.update(before)
        for mapping, kept in zip(mappings, registered, strict=True):
            mapping.clear()
            mapping.update(kept)


def _modules() -> list[str]:
    return [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]
