"""A masked parent is the correct cut: random paired plans over every family, cut one way and masked the other."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned_cuts import (
    LayerPlan,
    apart,
    attention_of,
    cut_by,
    kept_by,
    layers_of,
    parent_of,
    random_plan,
    run_experts_one_by_one,
)
from tiny_models import CASES, tiny_ids
from tiny_surgery import GROUP, KV, cut_heads
from torch import nn

from gqacheck.formats import open_checkpoint
from gqacheck.geometry.measure import measure
from gqacheck.lineage.trace import trace_lineage
from gqacheck.runtime.configure import CannotRun
from gqacheck.runtime.masked import KeptLayer, kept_of, mask_parent
from gqacheck.runtime.rebuild import rebuild

EQUAL = 1e-10  # of the logits' standard deviation
FAMILIES = [*CASES, "olmo3", "olmoe", "minimax_m2", "phimoe", "cohere2", "exaone4", "helium", "glm4_moe"]
PLANS = settings(
    max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
seeds = st.integers(0, 1 << 16)


@contextmanager
def norms_in_float64():
    """The stock RMS norms round to float32 inside, which hides whether a masked norm is the same function."""

    def forward(norm, x):
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))

    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2RMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm
    from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RMSNorm
    from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

    classes = (LlamaRMSNorm, MiniMaxM2RMSNorm, MistralRMSNorm, MixtralRMSNorm, Olmo2RMSNorm, Olmo3RMSNorm)
    classes += (OlmoeRMSNorm, Qwen2RMSNorm, Qwen3MoeRMSNorm)
    with ExitStack() as stack:
        for cls in classes:
            stack.enter_context(mock.patch.object(cls, "forward", forward))
        yield


@pytest.mark.parametrize("name", FAMILIES)
@PLANS
@given(seed=seeds)
def test_masked_parent_equals_the_cut_child(name, seed):
    parent = parent_of(name, seed)
    plan = random_plan(parent, seed)
    child = cut_by(parent, plan)
    with norms_in_float64():
        mask_parent(parent, kept_by(plan))
        assert apart(parent, child) <= EQUAL


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_parent_differs_from_a_child_whose_query_heads_moved_one_group_on(name):
    parent = parent_of(name)
    plan = [LayerPlan() for _ in layers_of(parent)]
    for mine, layer in zip(plan, layers_of(parent), strict=True):
        if attention_of(layer) is not None:
            mine.queries, mine.kv = [0, 2, 8, 11], [0, 2]
    right = cut_by(parent, plan)
    regrouped = copy.deepcopy(parent)
    for layer in layers_of(regrouped):
        if attention_of(layer) is not None:
            cut_heads(attention_of(layer), [8, 11, 0, 2], [0, 2])
    with norms_in_float64():
        mask_parent(parent, kept_by(plan))
        assert apart(parent, right) <= EQUAL
        assert apart(parent, regrouped) > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_parent_of_a_whole_plan_is_the_parent_bit_by_bit(name):
    parent = parent_of(name)
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    mask_parent(parent, [KeptLayer() for _ in layers_of(parent)])
    everything = [
        KeptLayer(None if attention_of(layer) is None else tuple(range(GROUP * KV))) for layer in layers_of(parent)
    ]
    mask_parent(parent, everything)
    assert all(torch.equal(before[key], value) for key, value in parent.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_masked_away_leaves_the_residual_stream_as_it_came(name):
    parent = parent_of(name)
    layer = layers_of(parent)[2]
    seen = {}
    layer.register_forward_hook(lambda _, args, kwargs, out: seen.update(
        before=kwargs.get("hidden_states", args[0] if args else None), after=out if torch.is_tensor(out) else out[0]
    ), with_kwargs=True)  # fmt: skip
    mask_parent(parent, [None if position == 2 else KeptLayer() for position in range(4)])
    apart(parent, parent)
    assert torch.equal(seen["before"], seen["after"])


WIDE = 72
HIDDEN = {
    **dict.fromkeys(("llama", "llama_bias", "mistral", "qwen2", "qwen2_tied", "mixtral", "qwen3_moe", "olmo2"), EQUAL),
    **dict.fromkeys(("gemma", "gemma3", "gpt_oss", "qwen3_next", "granite", "phi3", "glm4"), 1e-4),  # float32 inside
}


@pytest.mark.parametrize("name", HIDDEN)
def test_masked_parent_equals_a_child_with_a_cut_hidden_size(name):
    parent = tiny_wide(name)
    kept = [column for column in range(WIDE) if column % 5 != 3]
    child = narrowed(parent, kept)
    plan = random_plan(parent, 3, depth=False)
    child = cut_by(child, plan)
    with norms_in_float64():
        assert apart(parent, child) > 0.1
        mask_parent(parent, kept_by(plan), hidden=kept)
        assert apart(parent, child) <= HIDDEN[name]


def tiny_wide(name):
    """A tiny model whose hidden size is no other size of it, so that its columns can be told by their number."""
    from tiny_models import tiny_model

    model = tiny_model(name, hidden_size=WIDE, head_dim=16).double()
    run_experts_one_by_one(model)
    return model


def narrowed(model, kept):
    child = copy.deepcopy(model)
    for module in list(child.modules()):
        for leaf, values in list(module._parameters.items()):
            if values is None:
                continue
            for side, size in enumerate(values.shape):
                if size == WIDE:
                    values = values.index_select(side, torch.tensor(kept))
            module._parameters[leaf] = nn.Parameter(values.detach().contiguous())
    if child.config.tie_word_embeddings:
        child.lm_head.weight = child.get_input_embeddings().weight
    child.config.hidden_size = len(kept)
    for module in child.modules():
        if hasattr(module, "hidden_dim"):
            module.hidden_dim = len(kept)
    return child


@pytest.mark.parametrize("name", ["starcoder2", "olmo"])
def test_hidden_columns_are_not_masked_where_a_norm_sees_more_than_squares(name):
    parent = parent_of(name)
    with pytest.raises(CannotRun, match="masked form"):
        mask_parent(parent, [KeptLayer()] * 4, hidden=range(90))


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ([KeptLayer()] * 3, "3 layers and the model has 4"),
        ([KeptLayer(heads=(0, 12))] * 4, "layer 0: the plan keeps block 12, and the model has 12"),
        ([KeptLayer(channels=(0, 112))] * 4, "layer 0: the plan keeps block 112, and the model has 112"),
        ([KeptLayer(experts={0: (1,)})] * 4, "layer 0, expert 0: the model has no such expert"),
    ],
)
def test_mask_parent_of_a_plan_for_another_model_says_so(kept, says):
    with pytest.raises(CannotRun, match=says):
        mask_parent(parent_of("llama"), kept)


def test_mask_parent_of_an_expert_that_is_not_there_says_so():
    with pytest.raises(CannotRun, match="layer 0, expert 7: the model has 5 experts there"):
        mask_parent(parent_of("mixtral"), [KeptLayer(experts={7: (1,)})] + [KeptLayer()] * 3)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
def test_rebuilt_parent_masked_as_lineage_says_equals_the_rebuilt_child(name, seed, tmp_path):
    parent = parent_of(name, seed)
    plan = random_plan(parent, seed)
    torch.save(cut_by(parent, plan), tmp_path / "child.bin")
    torch.save(parent, tmp_path / "parent.bin")
    ours, theirs = (open_checkpoint(str(tmp_path / f"{who}.bin")) for who in ("child", "parent"))
    lineage = trace_lineage(ours, measure(ours), theirs, measure(theirs))
    kept = kept_of(lineage, measure(ours), measure(theirs))
    assert (kept.notes, kept.lacking) == ((), False)
    reference, child = (rebuild(one, measure(one), dtype=torch.float64).model for one in (theirs, ours))
    for model in (reference, child):
        run_experts_one_by_one(model)
    with norms_in_float64():
        mask_parent(reference, kept.layers, hidden=kept.hidden)
        assert apart(reference, child, tiny_ids(16)) <= EQUAL
