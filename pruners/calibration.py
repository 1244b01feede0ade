"""The text that importance is measured on, and the token ids made of it."""

from __future__ import annotations

import os
from typing import Any

import torch

from gqacheck.errors import GqacheckError, MissingDependency, UsageError
from gqacheck.runtime.corpora.asked import SMOKE
from gqacheck.runtime.corpus import load_corpus
from gqacheck.runtime.quiet import quiet_and_offline
from gqacheck.runtime.tokenizer import make_encoder
from gqacheck.text import printable
from pruners.quiet import silent

DEFAULT_CHARS = 4_000_000


class CalibrationError(GqacheckError):
    """The calibration text cannot be had, is too short, or is not for this model; one sentence, both numbers."""


def require_batches(model: Any, batches: torch.Tensor) -> None:
    """Nothing, when ``batches`` are [examples, positions] of ids that the model knows, at least 2 positions each.

    Raises:
        CalibrationError: they are not.
    """
    if batches.dim() != 2 or not len(batches) or batches.shape[1] < 2 or batches.is_floating_point():
        raise CalibrationError(
            f"calibration needs token ids [examples, positions] with at least 1 example of 2 positions, and these are "
            f"{batches.dtype} {list(batches.shape)}"
        )
    known = model.get_input_embeddings().weight.shape[0]
    low, high = int(batches.min()), int(batches.max())
    if low < 0 or high >= known:
        raise CalibrationError(
            f"the calibration text has token {high if high >= known else low} and the model knows 0-{known - 1}: use "
            "the model's own tokenizer"
        )


def calibration_batches(
    tokenizer: Any, text: str, *, n_examples: int = 10, seq_len: int = 128, seed: int = 0
) -> torch.Tensor:
    """Token ids [n_examples, seq_len] of windows of ``text`` that do not overlap, drawn by ``seed``, in text order.

    A tokenizer that puts a token in front by itself (``<s>``) has it in front of every window.

    Raises:
        CalibrationError: the text is too short for that.
        ReadError, MissingTokenizer: the tokenizer fails.
        UsageError: no examples, or fewer than 2 positions each.
    """
    if n_examples < 1 or seq_len < 2:
        raise UsageError(f"calibration needs at least 1 example of 2 positions, not {n_examples} of {seq_len}")
    encoder = make_encoder(tokenizer)
    with quiet_and_offline():  # a tokenizer remarks on the length of every text
        ids, first = encoder.encode(text), list(encoder.prefix)
    length = seq_len - len(first)
    if length < 1 or len(ids) < n_examples * length:
        raise CalibrationError(
            f"the calibration text has {len(ids):,} tokens and {n_examples} examples of {seq_len} need "
            f"{n_examples * max(length, 1):,}: give a longer text, or fewer or shorter examples"
        )
    generator = torch.Generator().manual_seed(seed)
    spare = len(ids) % length
    start = int(torch.randint(spare + 1, (1,), generator=generator))
    drawn = torch.randperm(len(ids) // length, generator=generator)[:n_examples].sort().values.tolist()
    windows = [first + ids[start + at * length : start + (at + 1) * length] for at in drawn]
    return torch.tensor(windows, dtype=torch.long)


def calibration_text(source: str, *, max_chars: int = DEFAULT_CHARS) -> str:
    """Up to ``max_chars`` of the text that ``source`` names.

    source: ``smoke`` (comes with gqacheck), the path of a UTF-8 text file, or what ``datasets`` can load: a folder or
    ``ID[:CONFIG[:SPLIT]]``, split ``train`` unless said. ``HF_DATASETS_OFFLINE`` and ``HF_HUB_OFFLINE`` are honoured.

    Raises:
        CalibrationError: there is no such dataset, it cannot be reached, or it has no text.
        ReadError, UsageError: the file cannot be read.
        MissingDependency: a dataset, and ``datasets`` is not installed.
    """
    if os.path.isfile(source) and not os.path.getsize(source):
        raise CalibrationError(f"{printable(source)} has no text to calibrate on: it is empty")
    if source == SMOKE or os.path.isfile(source):
        text = "\n\n".join(segment.text for segment in load_corpus(source).segments)
    else:
        text = _of_dataset(source, max_chars)
    if not text.strip():
        raise CalibrationError(f"{printable(source)} has no text to calibrate on")
    return text[:max_chars]


def _of_dataset(source: str, max_chars: int) -> str:
    if source.endswith((".txt", ".json", ".jsonl", ".md")) or (os.path.isabs(source) and not os.path.isdir(source)):
        raise CalibrationError(f"{printable(source)}: no such text file")
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(f"calibration on {source}", "run") from error
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    offline = bool(datasets.config.HF_DATASETS_OFFLINE or datasets.config.HF_HUB_OFFLINE)
    try:
        with silent("datasets", "huggingface_hub"):  # of every retry
            rows = datasets.load_dataset(
                name, config or None, split=split or "train", streaming=not offline and not os.path.isdir(name)
            )
            text = _joined(rows, max_chars)
    except CalibrationError:
        raise
    except Exception as error:  # whatever the library, its download or its builder raises
        why = " ".join(str(error).split())[:160] or type(error).__name__
        where = " (offline)" if offline else ""
        raise CalibrationError(
            f"{printable(source)} is no text file and the dataset of this name cannot be loaded{where}: {why}"
        ) from error
    return text


def _joined(rows: Any, max_chars: int) -> str:
    """The texts of the rows, an empty line between them, until there are ``max_chars``."""
    parts: list[str] = []
    length = 0
    for row in rows:
        column = "text" if "text" in row else next((key for key, value in row.items() if isinstance(value, str)), None)
        if column is None:
            raise CalibrationError(f"the dataset has no column of text: its columns are {', '.join(row)}")
        parts.append(str(row[column]))
        length += len(parts[-1]) + 2
        if length >= max_chars:
            break
    return "\n\n".join(parts)
