"""The names of what went wrong in a layer: each known pattern, and silence on what is right or unknown."""

from __future__ import annotations

import pytest
from lineages import layer_of, mixed, mlp_of

from gqacheck.geometry.origins import LayerOrigin, VectorOrigin
from gqacheck.lineage.cause import layer_cause

BLIND = "query heads were chosen one by one, without regard to KV groups"
INTERLEAVED = "query heads were taken as interleaved, head h with KV head h % 3 instead of h // 4"


def bias(role: str, wrong: tuple[int, ...], found: tuple[int, ...], positions: int) -> VectorOrigin:
    return VectorOrigin(role, "bias", "exact", "b", wrong, found, positions)


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        pytest.param(
            layer_of(range(24), [0, 2, 3, 4, 6, 7], ratio=(32, 8)),
            "q_proj was cut to its first 24 heads (as [:24 * head_dim] does)",
            id="first 24 of 32",
        ),
        pytest.param(
            layer_of(range(14), [1, 2], ratio=(28, 4)),
            "q_proj was cut to its first 14 heads (as [:14 * head_dim] does)",
            id="first 14 of 28",
        ),
        pytest.param(
            layer_of(range(9), [0, 1, 2], ratio=(12, 3)),
            "q_proj was cut to its first 9 heads (as [:9 * head_dim] does)",
            id="first 9 of 12, all KV heads kept",
        ),
        pytest.param(
            layer_of(range(5), [0, 1]), "q_proj was cut to its first 5 heads (as [:5 * head_dim] does)", id="5 over 2"
        ),
        pytest.param(
            layer_of(k=[0, 2]), "q_proj kept all 12 query heads while k_proj was cut to 2 of 3 KV heads", id="KV only"
        ),
        pytest.param(layer_of([0, 1, 2, 3, 4, 5, 8, 9], [0, 1]), BLIND, id="top-k over groups"),
        pytest.param(layer_of([0, 1, 2, 4, 5, 8, 9], [0, 1]), BLIND, id="top-k that does not divide"),
        pytest.param(layer_of([0, 2, 3, 5, 6, 8, 9, 11], [0, 2]), INTERLEAVED, id="interleaved, in order"),
        pytest.param(layer_of([0, 3, 6, 9, 2, 5, 8, 11], [0, 2]), INTERLEAVED, id="interleaved, group by group"),
        pytest.param(
            layer_of([0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]), INTERLEAVED, id="interleaved, all KV heads kept"
        ),
        pytest.param(layer_of([2, 8, 0, 9], [2, 0]), INTERLEAVED, id="interleaved, cut inside groups"),
        pytest.param(layer_of(range(4, 12), [0, 1]), "k_proj was cut to its first 2 KV heads", id="k cut to first"),
        pytest.param(
            layer_of([0, 1, 8, 9], [2, 0]), "k_proj was put in another order and q_proj was not", id="k reordered"
        ),
        pytest.param(
            layer_of(k=[2, 0, 1]), "k_proj was put in another order and q_proj was not", id="all kept, k reordered"
        ),
        pytest.param(
            layer_of([8, 9, 0, 1], [0, 2]), "q_proj was put in another order and k_proj was not", id="q reordered"
        ),
        pytest.param(layer_of([8, 9], [2], v=[0]), "v_proj was cut to its first 1 head", id="v cut to first"),
        pytest.param(
            layer_of([8, 9, 0, 1], [2, 0], v=[0, 2]), "v_proj was not reordered with k_proj", id="v not reordered"
        ),
        pytest.param(
            layer_of([0, 1, 8, 9], [0, 2], v=[2, 0]), "k_proj was not reordered with v_proj", id="k not reordered"
        ),
        pytest.param(layer_of([4, 5], [1], o=[0, 1]), "o_proj was cut to its first 2 heads", id="o cut to first"),
        pytest.param(layer_of([6, 4], [1], o=[4, 6]), "o_proj was not reordered with q_proj", id="o not reordered"),
        pytest.param(layer_of([4, 6], [1], o=[6, 4]), "q_proj was not reordered with o_proj", id="q behind o"),
        pytest.param(
            layer_of(mlps=[mlp_of([7, 1], down=[0, 1])]), "down_proj was cut to the first 2 channels", id="down first"
        ),
        pytest.param(
            layer_of(mlps=[mlp_of([0, 1], up=[0, 1], down=[7, 1])]),
            "gate_proj and up_proj were cut to the first 2 channels",
            id="gate and up first",
        ),
        pytest.param(
            layer_of(mlps=[mlp_of([7, 1], down=[1, 7])]),
            "down_proj was not reordered with gate_proj and up_proj",
            id="down not reordered",
        ),
        pytest.param(
            layer_of([4, 5], [1], vectors=[bias("q", (0, 1), (0, 1), 2)]),
            "the bias of q_proj was cut to its first 2 heads",
            id="bias cut to first",
        ),
        pytest.param(
            layer_of([8, 9, 0, 1], [2, 0], vectors=[bias("k", (0,), (0,), 3)]),
            "the bias of k_proj was not cut and reordered with its rows",
            id="bias not reordered",
        ),
        pytest.param(
            layer_of(range(8), [1, 2], v=[0, 1], o=[0, 1, 2, 3, 7, 6, 5, 4], mlps=[mlp_of([7, 1], down=[0, 1])]),
            "q_proj was cut to its first 8 heads (as [:8 * head_dim] does); v_proj was cut to its first 2 heads; "
            "down_proj was cut to the first 2 channels",
            id="several at once",
        ),
    ],
)
def test_cause_of_a_known_pattern_names_it(layer: LayerOrigin, cause: str) -> None:
    assert layer_cause(layer) == cause


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(layer_of(), id="uncut"),
        pytest.param(layer_of(range(8), [0, 1]), id="first groups with first KV heads"),
        pytest.param(layer_of([8, 9, 0, 1], [2, 0]), id="whole groups in another order"),
        pytest.param(layer_of([0, 1, 2, 4, 5, 6], [0, 1]), id="cut inside groups"),
        pytest.param(layer_of([9, 1, 6, 3], [0, 1]), id="regrouped for no known reason"),
        pytest.param(layer_of([4, 8, 5, 1], [1, 0], v=[2, 0], o=[5, 9, 0, 4]), id="everything wrong in its own way"),
        pytest.param(layer_of([0, None, 2, 9], [0]), id="a head that is not known"),
        pytest.param(layer_of([5], [2]), id="too few heads to be called interleaved"),
        pytest.param(layer_of([mixed(0, 1), 2], [2]), id="mixed"),
        pytest.param(layer_of([1, 2, 5, 6], [2]), id="even groups, of more KV heads than are left"),
        pytest.param(layer_of(mlps=[mlp_of([0, -1], up=[0, 1], down=[0, 1])]), id="a channel that is not known"),
        pytest.param(layer_of(range(8), "rewritten"), id="k not told"),
        pytest.param(layer_of(None, None, None, None), id="nothing told"),
        pytest.param(layer_of([4, 5], [1], o="rewritten"), id="o rewritten"),
        pytest.param(layer_of(mlps=[mlp_of([1, 7], down=[7, 2])]), id="channels apart for no known reason"),
        pytest.param(layer_of(mlps=[mlp_of([7, 1], down="rewritten")]), id="down rewritten"),
        pytest.param(layer_of(vectors=[bias("q", (0, 1), (2, 5), 8)]), id="a bias of other heads"),
        pytest.param(layer_of(vectors=[bias("q", (), (), 8)]), id="a bias with nothing wrong"),
    ],
)
def test_cause_of_what_is_right_or_unknown_is_empty(layer: LayerOrigin) -> None:
    assert layer_cause(layer) == ""
