"""Which of the many cases of a test run by default: all with GQACHECK_THOROUGH=1 (``make thorough``), else a sample.

The tests below go through every family, or every checkpoint of the zoo, and each case takes about a second. By default
Llama and Qwen2 run everywhere, the other promised families in half of the tests and every other case in a sixth, other
tests for each; which ones is a checksum of the names, so it is the same everywhere and every layout is met by some
test of every run. Every checkpoint of the zoo is judged in every run (tests/test_zoo.py); what is then done with it is
sampled likewise.
"""

from __future__ import annotations

import os
import zlib

import pytest

ALWAYS = frozenset(("llama", "qwen2"))
PROMISED = frozenset(("mistral", "mixtral", "qwen3", "gemma2", "gemma3", "phi3", "falcon"))
SAMPLED = frozenset(
    (
        "test_a_large_model_is_run_without_being_loaded",
        "test_biases_without_a_switch_are_kept_by_own_code",
        "test_export_of_a_family_cut_alike_loads_without_gqacheck",
        "test_export_of_a_state_dict_is_the_export_of_its_module",
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
OF_THE_ZOO = frozenset(
    (
        "test_broken_shapes_are_mended_with_the_parent",
        "test_correct_cut_costs_what_masking_its_parent_costs",
        "test_export_of_a_zoo_case_computes_what_the_checkpoint_computes",
        "test_misaligned_case_is_put_right",
        "test_sound_case_needs_nothing_and_nothing_is_written",
    )
)
"""Tests whose cases are checkpoints of the zoo: sampled too, but for truncated heads, which everything is about."""
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
    if function in OF_THE_ZOO:
        one_in = 1 if "truncated" in case else ONE_IN
    elif function in SAMPLED:
        family = case.split("-")[0]
        one_in = 1 if family in ALWAYS else 2 if family in PROMISED else ONE_IN
    else:
        one_in = 1
    return zlib.crc32(f"{function}[{case}]".encode()) % one_in != 0
