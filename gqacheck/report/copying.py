"""Which layers copy: what each one's output shows of having seen a random sequence before, for ``--verbose``."""

from __future__ import annotations

from gqacheck.geometry.outcomes import Induction, RuntimeFacts
from gqacheck.report.document import Block, Grid, Span, line

SAVED = "nats per token that seeing a random sequence again saves, read from a layer by the final norm and lm_head"
LOOKS_BACK = "attention of the layer's best head to the token after the earlier copy"


def copying_blocks(runtime: RuntimeFacts | None) -> list[Block]:
    """A table with one row per layer, the base's figures beside them; nothing where consistency was not measured."""
    consistency = runtime.consistency if runtime is not None else None
    if consistency is None:
        return []
    ours, base = consistency.induction, consistency.base_induction
    if ours is None or not (ours.layer_drops or ours.layers):
        return [line("repeated random tokens were not measured by layer", label=Span("by layer ", "dim"))]
    columns = [("saved", _column(ours.layer_drops, 2)), ("looks back", _column(ours.layers, 3))]
    if base is not None and _depth(base) == _depth(ours):
        columns[1:1] = [("base", _column(base.layer_drops, 2))]
        columns += [("base", _column(base.layers, 3))]
    columns = [(name, cells) for name, cells in columns if cells]
    rows = zip(map(str, range(_depth(ours))), *(cells for _, cells in columns), strict=True)
    said = [f"saved: {SAVED}"] * bool(ours.layer_drops) + [f"looks back: {LOOKS_BACK}"] * bool(ours.layers)
    return [
        line("; ".join(said), label=Span("by layer ", "dim")),
        Grid(("layer", *(name for name, _ in columns)), tuple(rows), indent=9),
    ]


def _depth(found: Induction) -> int:
    return len(found.layer_drops or found.layers)


def _column(figures: tuple[float, ...], digits: int) -> list[str]:
    return [f"{figure:.{digits}f}" for figure in figures]
