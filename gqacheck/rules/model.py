"""GQA401 to GQA414: the model as a whole, and the config that describes it. The rules are in the rooms beside."""

from __future__ import annotations

from gqacheck.rules.config import config_heads, config_intermediate
from gqacheck.rules.config_class import config_rejects, head_dim_implicit, needs_stated_heads
from gqacheck.rules.layers import layer_count, layer_gap, needs_a_layer_count, per_layer_list
from gqacheck.rules.needs import needs_config, needs_dense_weights, needs_dense_weights_and_config
from gqacheck.rules.rule import Rule, Severity
from gqacheck.rules.tensors import missing_tensor, mixed_dtype, norm_width
from gqacheck.rules.uniform import non_uniform
from gqacheck.rules.vocabulary import needs_any_config, tied_embeddings, token_ids, vocab_rows

MODEL_RULES: tuple[Rule, ...] = (
    Rule("GQA401", "layer-count", Severity.ERROR, "shapes", layer_count, needs_a_layer_count),
    Rule("GQA402", "layer-gap", Severity.ERROR, "shapes", layer_gap),
    Rule("GQA403", "config-heads", Severity.ERROR, "shapes", config_heads, needs_dense_weights_and_config),
    Rule(
        "GQA404", "config-intermediate", Severity.ERROR, "shapes", config_intermediate, needs_dense_weights_and_config
    ),
    Rule("GQA405", "non-uniform", Severity.ERROR, "shapes", non_uniform, needs_dense_weights),
    Rule("GQA406", "config-rejects", Severity.ERROR, "shapes", config_rejects),
    Rule("GQA407", "head-dim-implicit", Severity.ERROR, "shapes", head_dim_implicit, needs_stated_heads),
    Rule("GQA408", "vocab-rows", Severity.ERROR, "shapes", vocab_rows, needs_dense_weights),
    Rule("GQA409", "norm-width", Severity.ERROR, "shapes", norm_width, needs_dense_weights),
    Rule("GQA410", "missing-tensor", Severity.ERROR, "shapes", missing_tensor, needs_dense_weights),
    Rule("GQA411", "per-layer-list", Severity.ERROR, "shapes", per_layer_list, needs_config),
    Rule("GQA412", "tied-embeddings", Severity.WARNING, "shapes", tied_embeddings, needs_config),
    Rule("GQA413", "token-ids", Severity.WARNING, "shapes", token_ids, needs_any_config),
    Rule("GQA414", "mixed-dtype", Severity.WARNING, "shapes", mixed_dtype, needs_dense_weights),
)
