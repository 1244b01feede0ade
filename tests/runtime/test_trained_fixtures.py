"""The verdict lines on models that learned to read: healthy and well-cut below them, mis-cut and shuffled above."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_surgery import take

import gqacheck
from gqacheck.runtime.corpus import load_corpus
from gqacheck.runtime.perplexity import Tally, measure_perplexity
from gqacheck.runtime.tokenizer import make_encoder

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PROSE = [path.parent for path in sorted(FIXTURES.glob("*/model.safetensors")) if "copy" not in path.parent.name]
LIMIT = 10


def measured(model, tokenizer, corpus=str(FIXTURES / "heldout.txt")):
    return measure_perplexity(model, make_encoder(tokenizer), load_corpus(corpus), tally=Tally(), limit=LIMIT)


def rows(heads, size):
    return [head * size + row for head in heads for row in range(size)]


def cut_kv(model, kv_heads, *, right):
    """Keep ``kv_heads`` everywhere, with the query heads that read them or with the first ones (the 718,107 bug)."""
    for layer in model.model.layers:
        attention = layer.self_attn
        group, size = attention.num_key_value_groups, attention.head_dim
        kept = [kv * group + i for kv in kv_heads for i in range(group)]
        queries = kept if right else list(range(len(kept)))
        take(attention.k_proj, rows=rows(kv_heads, size))
        take(attention.v_proj, rows=rows(kv_heads, size))
        take(attention.q_proj, rows=rows(queries, size))
        take(attention.o_proj, columns=rows(queries, size))


def test_trained_fixtures_are_there():
    assert {json.loads((path / "config.json").read_text())["model_type"] for path in PROSE} >= {"llama"}


@pytest.mark.parametrize("folder", PROSE, ids=lambda folder: folder.name)
def test_trained_model_is_below_the_unigram_line_and_its_shuffled_weights_are_above(folder):
    model, tokenizer = gqacheck.load_model(folder)
    (healthy,) = measured(model, tokenizer).segments
    assert healthy.nll < healthy.unigram_nll - 0.5 < healthy.uniform_nll
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            values = parameter.data.flatten()
            parameter.data = values[torch.randperm(len(values), generator=generator)].view(parameter.shape)
    (shuffled,) = measured(model, tokenizer).segments
    assert shuffled.nll > shuffled.unigram_nll
    assert shuffled.unigram_nll == healthy.unigram_nll


@pytest.mark.parametrize("folder", PROSE, ids=lambda folder: folder.name)
def test_cut_by_whole_groups_reads_and_the_truncating_cut_does_not(folder):
    n_kv = json.loads((folder / "config.json").read_text())["num_key_value_heads"]
    kv_heads = [head for head in range(n_kv) if head not in (1, 5)] if n_kv > 4 else [0, 2, 3]
    values = {}
    for right in (True, False):
        model, tokenizer = gqacheck.load_model(folder)
        cut_kv(model, kv_heads, right=right)
        values[right] = measured(model, tokenizer)
    assert values[True].value < 0.5 * values[False].value
    assert values[True].segments[0].nll < values[True].segments[0].unigram_nll


@pytest.mark.parametrize("folder", PROSE, ids=lambda folder: folder.name)
def test_trained_model_reads_the_smoke_prose_better_than_token_frequencies(folder):
    model, tokenizer = gqacheck.load_model(folder)
    found = measured(model, tokenizer, "smoke")
    assert found.segments[0].name == "english"
    assert found.segments[0].nll < found.segments[0].unigram_nll
