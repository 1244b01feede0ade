"""``gqacheck.testing`` where there is no torch: lazy names, requests and the strategies that draw plain values."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gqacheck.testing
from gqacheck.errors import UsageError
from gqacheck.testing import GqaConfig, PruningCase, PruningRequest, gqa_configs, pruning_cases, pruning_requests
from gqacheck.testing.models import FAMILIES, RATIOS

PARTS = ("kv_groups", "queries", "mlp")
QUICK = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("", "hypothesis"),
        ("PruningRequest", "hypothesis"),
        ("GqaConfig", "hypothesis"),
        ("PrunerContract, gqa_models, pruning_cases, PruningRequest, GqaConfig", "torch"),
        ("PrunerContract, gqa_models, pruning_cases", "pytest"),
        ("PrunerContract, gqa_models, pruning_cases", "pruners"),
    ],
)
def test_import_of_names_brings_nothing_that_they_do_not_need(names: str, absent: str) -> None:
    wanted = f"from gqacheck.testing import {names}" if names else "import gqacheck.testing"
    done = run(f"{wanted}\nimport sys\nassert {absent!r} not in sys.modules and 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_without_hypothesis_the_sentence_says_what_to_install() -> None:
    done = run("import sys\nsys.modules['hypothesis'] = None\nfrom gqacheck.testing import PrunerContract")
    assert "GqacheckError: gqacheck.testing.PrunerContract needs hypothesis: pip install hypothesis" in done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    assert sorted(gqacheck.testing.__all__) == gqacheck.testing.__all__
    for name in gqacheck.testing.__all__:
        assert getattr(gqacheck.testing, name) is not None
        assert getattr(gqacheck.testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'gqa_pruners'"):
        gqacheck.testing.gqa_pruners  # noqa: B018


@QUICK
@given(gqa_configs())
def test_configs_tell_head_over_group_from_head_modulo_group(config: GqaConfig) -> None:
    assert config.n_kv_heads != config.group_size
    assert config.n_q_heads == config.n_kv_heads * config.group_size
    assert config.n_kv_heads > 1
    assert config.group_size > 1
    assert eval(repr(config)) == config  # noqa: S307 - it is printed to be pasted


def test_ratios_hold_counts_that_are_no_powers_of_two() -> None:
    counts = {(group * kv, kv) for group, kv in RATIOS}
    assert {(12, 3), (28, 4), (14, 2), (24, 6)} <= counts


@QUICK
@given(st.data())
def test_requests_ask_only_for_what_is_offered(data: st.DataObject) -> None:
    offered = data.draw(
        st.sampled_from([("kv_groups",), ("mlp",), ("queries", "mlp"), ("kv_groups", "queries", "mlp")])
    )
    request = data.draw(pruning_requests(offered, n_layers=3))
    assert set(request.parts) <= set(offered)
    assert not {"kv_groups", "queries"} <= set(request.parts)
    assert set(request.layer_range(3)) <= {0, 1, 2}
    assert len(request.layer_range(3)) > 0
    assert eval(repr(request)) == request  # noqa: S307 - as above


@QUICK
@given(pruning_cases(families=("qwen2", "phi3"), layer_ranges=False))
def test_case_without_layer_ranges_is_about_all_layers(case: PruningCase) -> None:
    assert case.request.layers is None
    assert case.config.family in ("qwen2", "phi3")
    assert str(case).startswith(case.config.family)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"ratio": 1.0}, "the ratio is 1.0: it must be at least 0 and below 1"),
        ({"ratio": -0.1}, "the ratio is -0.1"),
        ({"ratio": float("nan")}, "the ratio is nan"),
        ({"ratio": 0.5, "parts": ()}, r"parts is \(\): it must name some of kv_groups, queries, mlp"),
        ({"ratio": 0.5, "parts": ("heads",)}, "it must name some of"),
        ({"ratio": 0.5, "parts": ("kv_groups", "queries")}, "kv_groups or queries, not both"),
        ({"ratio": 0.5, "layers": (3, 1)}, r"layers is \(3, 1\): it must be \(start, end\)"),
        ({"ratio": 0.5, "layers": (-1, 1)}, r"layers is \(-1, 1\)"),
    ],
)
def test_request_that_makes_no_sense_is_refused(words: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        PruningRequest(**words)


def test_request_removes_its_share_and_leaves_one() -> None:
    request = PruningRequest(0.75, ("queries", "mlp"), layers=(1, 30))
    assert request.removes("mlp", 24) == 18
    assert request.removes("queries", 2) == 1
    assert request.removes("queries", 1) == 0
    assert request.removes("kv_groups", 8) == 0
    assert list(request.layer_range(4)) == [1, 2, 3]
    assert list(request.layer_range(1)) == []
    assert (
        str(request) == "remove 0.75 of the query heads of every KV group and MLP channels of layers 1 up to 30, seed 0"
    )


def test_family_that_is_not_known_is_named_before_anything_is_imported() -> None:
    with pytest.raises(UsageError, match="family 'gpt2' is not known here: it must be one of llama, "):
        GqaConfig("gpt2", 2, 3, 4, 24, 8, 1).transformers_config()
    assert FAMILIES[0] == "llama"
