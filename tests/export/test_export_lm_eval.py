"""lm-eval's ``hf`` model on exported folders: its numbers are those of the source's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import cut_alike, save_module
from tiny_models import tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from gqacheck.export import export

PAIRS = [["The head", " reads its own"], ["A layer", " of another size"], ["", "alone"]]
TEXTS = ["Every query head reads the key of its own group.", "short", "and one that is longer than a window " * 4]
WINDOW = 64


def log_likelihoods(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every id but the first, given those before it."""
    batch = torch.tensor([ids])
    with torch.inference_mode():
        spread = model(input_ids=batch, use_cache=False).logits[0, :-1].log_softmax(-1)
    return spread.gather(1, batch[0, 1:, None])[:, 0]


def of_continuation(model: Any, tokenizer: Any, context: str, text: str) -> float:
    """Log-likelihood of ``text`` behind ``context``."""
    before = tokenizer.encode(context) if context else [tokenizer.bos_token_id]
    after = tokenizer.encode(context + text)[len(before) if context else 0 :]
    return float(log_likelihoods(model, [*before, *after])[-len(after) :].sum())


def of_text(model: Any, tokenizer: Any, text: str) -> float:
    """Log-likelihood of ``text`` behind BOS; past the window, each window is filled up from the left."""
    ids = tokenizer.encode(text)
    total, done = 0.0, 0
    while done < len(ids):
        end = min(done + WINDOW, len(ids))
        before = ids[max(end - WINDOW - 1, 0) : done] if done else [tokenizer.bos_token_id]
        total += float(log_likelihoods(model, [*before, *ids[done:end]])[-(end - done) :].sum())
        done = end
    return total


@pytest.mark.parametrize("alike", [True, False])
def test_export_scored_by_lm_eval_gives_the_numbers_of_the_source(
    alike: bool, lm_eval_stranger: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(bos=False)
    cut_alike(model) if alike else cut_layers(model, (1, 3))
    folder = tmp_path / f"exported-{alike}"
    report = export(save_module(model, tmp_path / "in", tokenizer), folder)
    told = lm_eval_stranger("lm_eval", folder=folder, pairs=PAIRS, texts=TEXTS)
    assert told["class"] == report.architecture == ("LlamaForCausalLM" if alike else "PrunedLlamaForCausalLM")
    for (context, text), (found, _) in zip(PAIRS, told["pairs"], strict=True):
        assert found == pytest.approx(of_continuation(model, tokenizer, context, text), rel=1e-5), (context, text)
    for text, found in zip(TEXTS, told["texts"], strict=True):
        assert found == pytest.approx(of_text(model, tokenizer, text), rel=1e-5), text
