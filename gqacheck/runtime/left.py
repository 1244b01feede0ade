"""What a model that is gone leaves behind, so that its base can be compared with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gqacheck.geometry.outcomes import RuntimeFacts

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus
    from gqacheck.runtime.drawing import Drawn
    from gqacheck.runtime.protocols import Plan
    from gqacheck.runtime.relative import Footprint
    from gqacheck.runtime.tokenizer import TextEncoder


@dataclass(slots=True)
class Left:
    """What a model that is gone leaves behind for the comparison with its base, per corpus in the order asked."""

    encoder: TextEncoder | None = None
    corpora: list[Corpus] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    footprints: list[Footprint | None] = field(default_factory=list)
    drawn: Drawn | None = None


def judged_alone(facts: RuntimeFacts, left: Left) -> RuntimeFacts:
    """``facts`` with what the texts show without a base."""
    if left.drawn is None:
        return facts
    from gqacheck.runtime.generation import judge

    return replace(facts, generation=judge(left.drawn))
