"""The cache slots that a pickled model's layers write to, put on its rebuilt double."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gqacheck.checkpoint import Checkpoint, Container
from gqacheck.geometry.facts import Geometry
from gqacheck.runtime.skeleton import live_layers

_MOST = 10_000  # a cache has one slot per layer of the config; more is a broken or hostile file


@contextmanager
def adopt_cache_indices(model: Any, checkpoint: Checkpoint, geometry: Geometry) -> Iterator[str | None]:
    """Inside, the layers of a rebuilt whole-module pickle use the KV cache slots that the pickled modules name.

    The rebuild numbers them afresh; the pickle runs from its modules. Yields the sentence for the notes, None when the
    pickled numbers are the fresh ones or the container is no pickle. The pickled config's number of layers counts
    too, for it decides how many slots there are. All is put back on the way out.
    """
    changed = _changed(model, checkpoint, geometry)
    if not changed:
        yield None
        return
    config = model.config
    layers, types = config.num_hidden_layers, getattr(config, "layer_types", None)
    fresh = [(module, module.layer_idx) for module, _ in changed]
    stated = geometry.config.get("num_hidden_layers")
    try:
        for module, index in changed:
            module.layer_idx = index
        if type(stated) is int and layers < stated <= _MOST:
            config.num_hidden_layers = stated
            if isinstance(types, list) and types:
                config.layer_types = types + types[-1:] * (stated - len(types))
        module, index = changed[0]
        yield (
            f"layer_idx of {len(changed)} of {geometry.n_layers} attention modules is not the layer's number "
            f"({index} instead of {fresh[0][1]} first): generation and consistency run with it, as the pickle does"
        )
    finally:
        for module, index in fresh:
            module.layer_idx = index
        config.num_hidden_layers = layers
        if types is not None:
            config.layer_types = types


def _changed(model: Any, checkpoint: Checkpoint, geometry: Geometry) -> list[tuple[Any, int]]:
    """Live attention modules with the other cache index that their pickled counterpart carries."""
    if checkpoint.container is not Container.MODULE:
        return []
    found = []
    for layer, live in zip(geometry.layers, live_layers(model, geometry)[1], strict=True):
        stored = layer.attention.module.attributes.get("layer_idx") if layer.attention.module else None
        module = dict(live.named_modules()).get(layer.attention.path.removeprefix(layer.path + "."))
        now = getattr(module, "layer_idx", None)
        if type(stored) is int and type(now) is int and stored != now and abs(stored) < _MOST:
            found.append((module, stored))
    return found
