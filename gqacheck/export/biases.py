"""Biases that a checkpoint has and its class does not: FLAP puts one where it took something away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqacheck.checkpoint import Checkpoint
from gqacheck.geometry.facts import Geometry

if TYPE_CHECKING:
    from gqacheck.export.fit import Built


def added_biases(built: Built, checkpoint: Checkpoint, geometry: Geometry) -> list[list[str]]:
    """For each layer the projections, by their names within it, with a stored bias that ``built`` has no place for.

    [] when there is none. What they are for: ``gqacheck_layers.added_biases`` of an own modelling file.
    """
    from torch import nn

    from gqacheck.runtime.rebuild import sources_of
    from gqacheck.runtime.skeleton import live_layers

    sources = sources_of(built.model, checkpoint, geometry)
    path, layers = live_layers(built.model, geometry)
    found = [
        [
            name
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear) and module.bias is None and f"{path}.{index}.{name}.bias" in sources
        ]
        for index, layer in enumerate(layers)
    ]
    return found if any(found) else []
