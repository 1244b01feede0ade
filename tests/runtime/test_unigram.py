"""The unigram line: near the entropy of what it models, out of sample, and below uniform."""

from __future__ import annotations

import math
import random

import pytest

from gqacheck.runtime.unigram import unigram_nll


def zipf(vocab, exponent=1.0):
    weights = [1.0 / (rank + 2) ** exponent for rank in range(vocab)]
    total = sum(weights)
    return [weight / total for weight in weights]


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize(("vocab", "tokens"), [(300, 6000), (2000, 20000)])
def test_unigram_on_a_true_unigram_source_pays_about_its_entropy(vocab, tokens):
    probabilities = zipf(vocab)
    text = random.Random(0).choices(range(vocab), probabilities, k=tokens)
    found = unigram_nll(text, text, vocab)
    assert entropy(probabilities) < found < 1.05 * entropy(probabilities)


def test_unigram_with_a_vocabulary_far_larger_than_the_text_stays_useful():
    probabilities = zipf(3000)
    text = random.Random(1).choices(range(3000), probabilities, k=6000)
    found = unigram_nll(text, text, 128256)
    assert entropy(probabilities) < found < entropy(probabilities) + 1.5
    add_one = sum(math.log((5999 + 128256) / text.count(token)) for token in text[:500]) / 500
    assert found < add_one - 1  # why the smoothing is chosen: add-one would let broken models pass


def test_unigram_is_out_of_sample_so_a_text_of_distinct_tokens_gains_nothing():
    text = list(range(500))
    assert unigram_nll(text, text, 1000) == pytest.approx(math.log(1000), abs=0.1)


def test_unigram_of_a_constant_text_is_nearly_free():
    assert unigram_nll([5] * 1000, [5] * 900, 1000) < 0.01


def test_unigram_scores_only_what_was_scored_but_counts_everything():
    text = [1] * 900 + [2] * 100
    both = unigram_nll(text, text, 100)
    rare = unigram_nll(text, [2] * 10, 100)
    assert rare == pytest.approx(math.log(10), abs=0.05)
    assert both < rare


def test_unigram_without_anything_to_score_is_nan_and_of_one_token_is_uniform():
    assert math.isnan(unigram_nll([1, 2], [], 10))
    assert unigram_nll([1], [1], 10) == pytest.approx(math.log(10))
