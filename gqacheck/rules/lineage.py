"""GQA601 to GQA608: the checkpoint beside its parent. The rules are in the rooms beside."""

from __future__ import annotations

from gqacheck.rules.aligned import (
    bias_misaligned,
    k_v_misaligned,
    needs_outputs,
    needs_values,
    needs_vectors,
    q_o_misaligned,
)
from gqacheck.rules.foreign import foreign_rows, layer_origin, needs_layers, needs_parent_layers
from gqacheck.rules.lineage_mlp import mlp_misaligned, needs_channels
from gqacheck.rules.pairing import head_regrouped, needs_pairs, needs_queries, uneven_groups
from gqacheck.rules.rule import Rule, Severity

LINEAGE_RULES: tuple[Rule, ...] = (
    Rule("GQA601", "head-regrouped", Severity.ERROR, "pairing", head_regrouped, needs_queries),
    Rule("GQA602", "q-o-misaligned", Severity.ERROR, "pairing", q_o_misaligned, needs_outputs),
    Rule("GQA603", "k-v-misaligned", Severity.ERROR, "pairing", k_v_misaligned, needs_values),
    Rule("GQA604", "mlp-misaligned", Severity.ERROR, "pairing", mlp_misaligned, needs_channels),
    Rule("GQA605", "bias-misaligned", Severity.ERROR, "pairing", bias_misaligned, needs_vectors),
    Rule("GQA606", "foreign-rows", Severity.WARNING, "pairing", foreign_rows, needs_layers),
    Rule("GQA607", "layer-origin", Severity.WARNING, "pairing", layer_origin, needs_parent_layers),
    Rule("GQA608", "uneven-groups", Severity.ERROR, "pairing", uneven_groups, needs_pairs),
)
