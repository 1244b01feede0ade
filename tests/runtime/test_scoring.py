"""Losses in blocks of the vocabulary are those of whole logits, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_ids, tiny_model

from gqacheck.runtime import scoring
from gqacheck.runtime.scoring import Head, Tally, backbone, head_of, hidden_nlls, token_nlls


def exact(model, ids):
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere2", "granitemoe", "phi"])  # cap, scale, divisor, bias
@pytest.mark.parametrize(("rows", "elements"), [(7, 7), (7, 7 * 50), (1024, 23 * 2 * 64), (1024, 1 << 21)])
def test_losses_in_blocks_of_any_size_are_the_models_own(name, rows, elements, monkeypatch):
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", rows)
    monkeypatch.setattr(scoring, "_IN_CACHE", elements)
    model, ids = tiny_model(name), tiny_ids(24)
    assert head_of(model).in_parts
    tally = Tally()
    with torch.inference_mode():
        ours = token_nlls(model, ids, tally=tally)
    assert torch.allclose(ours.double(), exact(model, ids), atol=1e-5, rtol=1e-5)
    vocab = model.get_output_embeddings().weight.shape[0]
    assert (tally.logits, tally.non_finite) == (ours.numel() * vocab, 0)


@pytest.mark.parametrize("ids", [slice(0, 100), slice(200, 320)])
def test_blocks_of_impossible_ids_leave_the_loss_finite(ids, monkeypatch):
    monkeypatch.setattr(scoring, "_IN_CACHE", 10 * 40)
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(16, 320)
    hidden, targets = torch.randn(10, 16), torch.arange(150, 160)
    with torch.inference_mode():
        lm_head.bias[ids] = float("-inf")
        tally = Tally()
        ours = hidden_nlls(Head(lm_head), hidden, targets, tally)
        expected = torch.nn.functional.cross_entropy(lm_head(hidden).double(), targets, reduction="none")
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert tally.non_finite == 10 * (ids.stop - ids.start)


def test_logits_far_apart_in_different_blocks_neither_overflow_nor_vanish(monkeypatch):
    monkeypatch.setattr(scoring, "_IN_CACHE", 4)
    lm_head = torch.nn.Linear(1, 6, bias=False)
    with torch.inference_mode():
        lm_head.weight[:, 0] = torch.tensor([-3e4, 1e4, 9e3, 3e4, 2e4, 3e4])
        ours = hidden_nlls(Head(lm_head), torch.ones(4, 1), torch.tensor([0, 3, 4, 5]))
    assert ours.tolist() == pytest.approx([6e4 + 0.6931472, 0.6931472, 1e4 + 0.6931472, 0.6931472], rel=1e-5)


def test_head_that_somebody_watches_is_asked_for_all_of_it():
    model, ids = tiny_model("llama"), tiny_ids(24)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, given, output: seen.append(output.shape[-1]) or None)
    assert not head_of(model).in_parts
    with torch.inference_mode():
        ours = token_nlls(model, ids)
    handle.remove()
    assert set(seen) == {320}
    assert torch.allclose(ours.double(), exact(model, ids), atol=1e-5, rtol=1e-5)


def test_no_block_is_larger_than_the_cache(monkeypatch):
    model, ids = tiny_model("llama"), tiny_ids(24)
    monkeypatch.setattr(scoring, "_IN_CACHE", 1000)
    largest = []
    logits = Head.logits

    def watched(self, hidden, part=None):
        found = logits(self, hidden, part)
        largest.append(found.numel())
        return found

    monkeypatch.setattr(Head, "logits", watched)
    with torch.inference_mode():
        hidden = backbone(model, ids).reshape(-1, model.config.hidden_size)
        hidden_nlls(head_of(model), hidden, torch.zeros(len(hidden), dtype=torch.long))
    assert len(largest) > 1
    assert max(largest) <= 1000
