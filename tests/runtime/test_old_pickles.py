"""Whole-module pickles written by transformers 4.33 to 5.x, rebuilt under the installed one: the logits are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "old_pickles"
PICKLES = sorted(FOLDER.glob("*.bin"))


def test_old_pickles_are_there():
    assert len(PICKLES) >= 5
    assert {"4.33", "4.36", "4.40", "5.23"} <= {path.stem.split("-")[-1].rpartition(".")[0] for path in PICKLES}


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_old_pickle_rebuilt_gives_the_logits_of_the_version_that_wrote_it(path, rebuild_file):
    expected = load_file(path.with_suffix(".logits.safetensors"))
    rebuilt = rebuild_file(path)
    ids = expected["input_ids"]
    rebuilt.model.set_attn_implementation("eager")
    with torch.inference_mode():
        eager = rebuilt.model(input_ids=ids).logits
        rebuilt.model.set_attn_implementation("sdpa")
        sdpa = rebuilt.model(input_ids=ids).logits
    assert torch.equal(eager, expected["logits_eager"])
    # the attention that the pickle carries: sdpa from 4.36 or 4.38 on, by family
    assert torch.equal(eager, expected["logits"]) or torch.equal(sdpa, expected["logits"])
    halved = "logits_rounded_buffers" in expected
    assert any("rounded to float16" in note for note in rebuilt.notes) == halved
    if halved:
        assert not torch.equal(eager, expected["logits_rounded_buffers"])


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_old_pickle_gives_back_its_tokenizer(path):
    from gqacheck.formats import open_checkpoint
    from gqacheck.runtime.tokenizer import MissingTokenizer, make_encoder, open_tokenizer

    checkpoint = open_checkpoint(str(path))
    if checkpoint.tokenizer is None:
        with pytest.raises(MissingTokenizer, match="--tokenizer"):
            open_tokenizer(checkpoint)
        return
    tokenizer = open_tokenizer(checkpoint)
    encoder = make_encoder(tokenizer)
    text = "The model reads this text and writes it back."
    assert tokenizer.decode(encoder.encode(text)) == text
    assert tokenizer.eos_token_id == 2
