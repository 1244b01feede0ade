"""Rules: pure functions from a Subject to violations. ``RULES`` is the whole list, in order of code."""

from __future__ import annotations

from gqacheck.rules.attention import ATTENTION_RULES
from gqacheck.rules.consistency import CONSISTENCY_RULES
from gqacheck.rules.files import FILE_RULES
from gqacheck.rules.generation import GENERATION_RULES
from gqacheck.rules.lineage import LINEAGE_RULES
from gqacheck.rules.mlp import MLP_RULES
from gqacheck.rules.model import MODEL_RULES
from gqacheck.rules.modules import MODULE_RULES
from gqacheck.rules.perplexity import PERPLEXITY_RULES
from gqacheck.rules.rule import Rule
from gqacheck.rules.runtime import RUNTIME_RULES
from gqacheck.rules.suspect import VALUE_RULES

RULES: tuple[Rule, ...] = (
    *FILE_RULES,
    *ATTENTION_RULES,
    *MODULE_RULES,
    *MLP_RULES,
    *MODEL_RULES,
    *VALUE_RULES,
    *LINEAGE_RULES,
    *RUNTIME_RULES,
    *PERPLEXITY_RULES,
    *GENERATION_RULES,
    *CONSISTENCY_RULES,
)
