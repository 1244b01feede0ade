"""LLM-Drop's lists of blocks that are not run: by number or by one answer per layer, stored or not."""

from __future__ import annotations

from typing import Any

import pytest

from gqacheck.geometry.config import config_layer_claim, config_layer_value, empty_layers, is_left_out

SIZES = {"num_hidden_layers": 4, "num_attention_heads": 12, "num_key_value_heads": 3, "intermediate_size": 112}


@pytest.mark.parametrize("entries", [(0, 2), [2, 0], [True, False, True, False]])
def test_left_out_blocks_have_size_0(entries: Any) -> None:
    config = {**SIZES, "drop_attn_list": entries, "drop_mlp_list": ()}
    assert [config_layer_value(config, "num_attention_heads", layer) for layer in range(4)] == [0, 12, 0, 12]
    assert [config_layer_value(config, "num_key_value_heads", layer) for layer in range(4)] == [0, 3, 0, 3]
    assert [config_layer_value(config, "intermediate_size", layer) for layer in range(4)] == [112] * 4
    claim = config_layer_claim(config, "num_attention_heads", 2, "config.json")
    assert claim is not None
    assert (claim.value, claim.source) == (0, "config.json drop_attn_list")
    assert list(empty_layers(config)) == []


@pytest.mark.parametrize("entries", [None, "0", (), (True, 1, "0"), (None,), ((0,),), {"0": 0}, 0, (4, -1)])
def test_lists_that_say_nothing_of_a_layer_leave_it_in(entries: Any) -> None:
    config = {**SIZES, "drop_attn_list": entries}
    assert not is_left_out(config, "num_attention_heads", 0)


def test_layers_without_either_block_are_empty() -> None:
    assert list(empty_layers({**SIZES, "drop_attn_list": (1, 3), "drop_mlp_list": (3, 2)})) == [3]
    lists = {"num_attention_heads": (0, 12, 0, 0), "intermediate_size": (0, 0, 112, 0)}
    assert list(empty_layers({**SIZES, "gqacheck_layers": lists})) == [0, 3]
    assert list(empty_layers(SIZES)) == []
    assert list(empty_layers({**SIZES, "num_hidden_layers": 1 << 30, "gqacheck_layers": lists})) == []
