"""Which of the many cases of a test run by default: all with GQACHECK_THOROUGH=1 (``make thorough``), else a sample.

The tests below go through every family, or every checkpoint of the zoo, and each case takes about a second. By default
the promised families run everywhere and every other case in a sixth of the tests, another sixth for each; which
ones is a checksum of the names, so it is the same everywhere and every layout is met by some test of every run.
"""

from __future__ import annotations

import os
import zlib

import pytest

PROMISED = frozenset(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "falcon"))
SAMPLED = frozenset(
    (
        "test_a_large_model_is_run_without_being_loaded",
        "test_biases_without_a_switch_are_kept_by_own_code",
        "test_export_of_a_family_cut_alike_loads_without_gqacheck",
        "test_export_of_a_state_dict_is_the_export_of_its_module",
        "test_export_of_a_zoo_case_computes_what_the_checkpoint_computes",
        "test_export_of_an_uncut_family_loads_with_its_own_class",
        "test_export_of_any_cut_of_a_further_family_is_verified",
        "test_export_of_differing_layers_brings_its_own_code",
        "test_healthy_family_agrees_every_way",
        "test_load_in_float64_gives_what_the_original_gives_in_float64",
        "test_load_of_a_non_uniform_cut_gives_its_logits_and_generates_alike_with_every_cache",
        "test_load_of_dropped_blocks_computes_the_residual_alone_with_every_cache",
        "test_modelling_further_family_answers_like_the_cut_model",
        "test_older_transformers_computes_the_same_of_an_export",
        "test_padded_export_of_a_family_loads_with_its_own_class",
        "test_padded_export_of_any_cut",
        "test_rebuilt_parent_masked_as_lineage_says_equals_the_rebuilt_child",
        "test_rebuilt_pickle_fails_where_the_pickled_model_itself_fails",
        "test_save_of_a_uniform_cut_writes_what_plain_transformers_loads",
        "test_save_of_a_whole_model_writes_what_plain_transformers_loads",
        "test_truncated_query_heads_of_a_family_are_put_right",
    )
)
ONE_IN = 6


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases that only a thorough run takes; one that was named on the command line always runs."""
    if os.environ.get("GQACHECK_THOROUGH") or any("[" in argument for argument in config.args):
        return
    left = [item for item in items if _is_for_thorough_runs(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def _is_for_thorough_runs(item: pytest.Item) -> bool:
    if item.get_closest_marker("thorough") is not None:
        return True
    function = getattr(item, "originalname", "")
    case = item.callspec.id if hasattr(item, "callspec") else ""
    promised = case.split("-")[0] in PROMISED and "zoo" not in function
    if function not in SAMPLED or promised:
        return False
    return zlib.crc32(f"{function}[{case}]".encode()) % ONE_IN != 0
