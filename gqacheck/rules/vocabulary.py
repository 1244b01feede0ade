"""GQA408, 412 and 413: embedding, lm_head, tied weights and the special tokens' ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gqacheck.checkpoint import Container, Plain
from gqacheck.geometry.config import LARGEST, config_number
from gqacheck.geometry.facts import Projection, Subject
from gqacheck.rules.needs import needs_config
from gqacheck.rules.predict import cannot_multiply, once_saved, refused
from gqacheck.rules.rule import Quantity, Severity, Violation, by_container
from gqacheck.rules.spelling import config_name, spelled

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MOST_IDS = 64
_EXTRA_EMBEDDING_ROWS = {"mllama": 8}
"""Rows of the embedding beyond vocab_size, for tokens that are never predicted (Llama-3.2-Vision's image tokens)."""


def vocab_rows(subject: Subject) -> Iterator[Violation]:
    """Embedding, lm_head and config do not agree on the vocabulary.

    What it checks
        Rows of the embedding, rows of lm_head and the config's vocab_size; also that lm_head's columns are the hidden
        size, and that the config's hidden_size is the embedding's width. A vocabulary larger than the tokenizer is
        normal and not looked at.

    Why it matters
        A token id above the embedding's rows has no vector; a row of lm_head too many or too few shifts nothing but
        changes which tokens can be said.

    What you would see
        Embedding too short: `IndexError: index out of range in self`. lm_head too short: nothing, it runs and never
        says the last tokens. Config: folder `MISMATCH … Reinit due to size mismatch`; in a pickle the training loss
        reshapes to vocab_size and fails. lm_head of another width: `mat1 and mat2 shapes cannot be multiplied`.

    Fix
        Keep the same rows in embedding and lm_head, and set vocab_size to their number.

    Known misses
        Rows in another order than the tokenizer's ids.

    Source
        torch.nn.Embedding and the causal language-model loss of transformers 5.23, measured.
    """
    geometry = subject.geometry
    embedding, head = geometry.embedding, geometry.lm_head
    stated = config_number(geometry.config, "vocab_size")
    source = f"{config_name(subject)} {spelled(subject, 'vocab_size')}"
    extra = _EXTRA_EMBEDDING_ROWS.get(geometry.family.name, 0)
    if embedding is not None and head is not None and embedding.rows - extra != head.rows:
        yield _head_against_embedding(subject, embedding, head, stated, source)
    elif stated is not None:
        either = head or embedding
        if either is not None and either.rows not in (stated, stated + extra):
            yield _config_against_rows(subject, either, stated, source)
    yield from _widths(subject, embedding, head)


def _head_against_embedding(
    subject: Subject, embedding: Projection, head: Projection, stated: int | None, source: str
) -> Violation:
    says = "" if stated is None else f"; {source} is {stated}"
    short = "it runs and can never say the last tokens"
    wrong = head if stated in (None, embedding.rows) else embedding
    right = embedding.rows if stated is None else stated
    if subject.container is Container.MODULE:
        low = "IndexError: index out of range in self, for token ids of the rows that are gone"
        consequence = low if embedding.rows < head.rows else short
    else:
        name = wrong.tensor
        consequence = refused(subject, name, (wrong.rows, wrong.columns), (right, wrong.columns))
    return Violation(
        message=f"{embedding.name} has {embedding.rows} rows, but {head.name} {head.rows}{says}",
        tensors=(embedding.tensor, head.tensor),
        expected=Quantity(right, "vocabulary rows"),
        actual=Quantity(wrong.rows, "vocabulary rows"),
        source="tensor shapes" if stated is None else f"tensor shapes, {source}",
        consequence=consequence,
        fix=f"keep the same rows in {embedding.name} and {head.name}",
    )


def _config_against_rows(subject: Subject, stored: Projection, stated: int, source: str) -> Violation:
    if subject.container is Container.MODULE:
        consequence = f"it runs; a training step (LoRA too) reshapes its logits to {stated} columns and raises"
    else:
        consequence = refused(subject, stored.tensor, (stored.rows, stored.columns), (stated, stored.columns))
    return Violation(
        message=f"{stored.name} has {stored.rows} rows, but {source} is {stated}",
        tensors=(stored.tensor,),
        expected=Quantity(stated, "vocabulary rows"),
        actual=Quantity(stored.rows, "vocabulary rows"),
        source=f"tensor shapes, {source}",
        consequence=consequence,
        fix=f"set {spelled(subject, 'vocab_size')} to {stored.rows}",
    )


def _widths(subject: Subject, embedding: Projection | None, head: Projection | None) -> Iterator[Violation]:
    hidden = subject.geometry.hidden_size
    if hidden is None:
        return
    if head is not None and head.columns != hidden.value:
        if subject.container is Container.MODULE:
            consequence = cannot_multiply(hidden.value, head.columns, head.rows)
        else:
            consequence = refused(subject, head.tensor, (head.rows, head.columns), (head.rows, hidden.value))
        yield Violation(
            message=f"{head.name} takes {head.columns} inputs, but hidden_size is {hidden.value} ({hidden.source})",
            tensors=(head.tensor,),
            expected=Quantity(hidden.value, "inputs"),
            actual=Quantity(head.columns, "inputs"),
            source="tensor shapes",
            consequence=consequence,
            fix=f"keep the {hidden.value} columns of {head.name} that the residual stream kept",
        )
    stated = config_number(subject.geometry.config, "hidden_size")
    if embedding is None or stated is None or stated == embedding.columns:
        return
    key = spelled(subject, "hidden_size")
    stored, built = (embedding.rows, embedding.columns), (embedding.rows, stated)
    yield Violation(
        message=f"{embedding.name} is {embedding.columns} wide, but {config_name(subject)} {key} is {stated}",
        tensors=(embedding.tensor,),
        expected=Quantity(stated, "hidden channels"),
        actual=Quantity(embedding.columns, "hidden channels"),
        source=f"tensor shapes, {config_name(subject)} {key}",
        consequence=once_saved(subject, refused(subject, embedding.tensor, stored, built)),
        fix=f"set {key} to {embedding.columns}",
        severity=by_container(subject, folder=Severity.ERROR, module=Severity.WARNING),
    )


def tied_embeddings(subject: Subject) -> Iterator[Violation]:
    """tie_word_embeddings says one thing, the file does another.

    What it checks
        Stated as true: an lm_head stored apart from the embedding. Stated as false: an lm_head that is the embedding's
        own storage. An lm_head that is simply absent while the config says it is not tied is GQA410. A config that
        does not state it is not judged.

    Why it matters
        Tying happens when a model is loaded. Stated as true, transformers 4 throws the stored lm_head away without a
        word; stated as false, one matrix becomes two, and training moves them apart.

    What you would see
        transformers 5: `The tied weights mapping … specifies to tie … but both are present in the checkpoints with
        different values, so we will NOT tie them`. transformers 4: nothing, and other logits.

    Fix
        Set tie_word_embeddings to what the file does, or store the matrix once.

    Known misses
        In safetensors every tensor has bytes of its own: an lm_head that is an exact copy of the embedding looks the
        same as one that is not.

    Source
        Loading of transformers 5.23, measured; `tie_weights` of 4.40.
    """
    geometry = subject.geometry
    embedding, head = geometry.embedding, geometry.lm_head
    tie = geometry.config.get("tie_word_embeddings")
    if embedding is None or head is None or not isinstance(tie, bool):
        return
    tensors = subject.checkpoint.tensors
    stored = (tensors.get(embedding.tensor), tensors.get(head.tensor))
    if tie == geometry.lm_head_tied or any(tensor is None or tensor.storage is None for tensor in stored):
        return
    source = f"{config_name(subject)} tie_word_embeddings"
    if tie:
        message = f"{source} is true, but {head.name} is stored apart from {embedding.name}"
        consequence = (
            "the pickle runs untied; loaded from a folder, transformers 4 drops lm_head without a word"
            if subject.container is Container.MODULE
            else "transformers 4 drops the stored lm_head without a word; transformers 5 warns that it will NOT tie "
            "them when their values differ"
        )
        fix = "set tie_word_embeddings to false, or store one matrix if the two are the same"
    else:
        message = f"{source} is false, but {head.name} and {embedding.name} are one storage"
        consequence = "loading makes two matrices of one, and training moves them apart"
        fix = "set tie_word_embeddings to true, or give lm_head a copy of its own before saving"
    yield Violation(
        message=message,
        tensors=(embedding.tensor, head.tensor),
        source=f"storages, {source}",
        consequence=consequence,
        fix=fix,
    )


def needs_any_config(subject: Subject) -> tuple[str, str] | None:
    """A config or a generation config that may name token ids."""
    return None if subject.checkpoint.generation_config is not None else needs_config(subject)


def token_ids(subject: Subject) -> Iterator[Violation]:
    """A special token's id lies outside the vocabulary, or differs from the base's.

    What it checks
        bos_token_id, eos_token_id (one or several) and pad_token_id of the config and of generation_config.json against
        the embedding's rows; null and -1 mean "none". With a base: whether they changed (bos and eos a warning, pad
        a note).

    Why it matters
        An eos that is never produced makes generation run to its limit; an id outside the vocabulary has no vector.
        LLM-Pruner's generate.py sets pad, bos and eos to 0, 1 and 2, the ids of the first LLaMA; in a Llama-3
        vocabulary these are ordinary tokens, and generation stops at a quotation mark.

    What you would see
        pad_token_id outside: `AssertionError: Padding_idx must be within num_embeddings` when the folder is loaded. bos
        or eos outside: a warning in the log, `IndexError: index out of range in self` once it is fed in, or
        generation that never ends.

    Fix
        Copy the ids from the base; enlarge the embedding if a token was really added.

    Known misses
        Ids that are inside the vocabulary and wrong, when no base is given. The tokenizer's own ids.

    Source
        Config validation and torch.nn.Embedding under transformers 5.23, measured.
    """
    for values, source, base in _sources(subject):
        for key in _IDS:
            yield from _outside(subject, values, source, key)
            if base is not None:
                yield from _changed(values, source, key, base)


def _sources(subject: Subject) -> Iterator[tuple[Mapping[str, Plain], str, Mapping[str, Plain] | None]]:
    """The child's configs that name ids, each with the parent's of the same kind."""
    base = subject.base
    if subject.config is not None:
        yield subject.config.values, subject.config.source, base.geometry.config if base else None
    generation = subject.checkpoint.generation_config
    if generation is not None:
        theirs = base.checkpoint.generation_config if base else None
        yield generation.values, generation.source, theirs.values if theirs else None


def _ids(value: Plain) -> list[int]:
    """The ids that a config value names, "none" left out; nothing for what is no id."""
    listed = list(value)[:_MOST_IDS] if isinstance(value, tuple | list) else [value]
    return [item for item in listed if type(item) is int and item != -1 and abs(item) < LARGEST]


def _outside(subject: Subject, values: Mapping[str, Plain], source: str, key: str) -> Iterator[Violation]:
    embedding = subject.geometry.embedding
    packed = subject.checkpoint.quantization is not None
    rows = None if embedding is None or packed else embedding.rows
    size = rows if rows is not None else config_number(subject.geometry.config, "vocab_size")
    if size is None or size <= 0:
        return
    where = f"{embedding.name} rows" if rows is not None and embedding is not None else "vocab_size"
    for number in _ids(values.get(key)):
        if 0 <= number < size:
            continue
        if key == "pad_token_id" and subject.container is not Container.MODULE and source != "generation_config.json":
            consequence = "AssertionError: Padding_idx must be within num_embeddings, when it is loaded"
        elif key == "eos_token_id":
            consequence = "generation never meets it and runs to its limit"
        else:
            consequence = "IndexError: index out of range in self, once it is fed in"
        yield Violation(
            message=f"{source} {key} is {number}, outside the vocabulary of {size} ({where})",
            expected=Quantity(size - 1, "token id, at most"),
            actual=Quantity(number, "token id"),
            source=f"{source}, {where}",
            consequence=consequence,
            fix=f"set {key} to the id that the tokenizer uses, or to null",
        )


def _changed(values: Mapping[str, Plain], source: str, key: str, base: Mapping[str, Plain]) -> Iterator[Violation]:
    if key not in values or key not in base:
        return
    ours, theirs = _ids(values[key]), _ids(base[key])
    if set(ours) == set(theirs):
        return
    shown, before = (", ".join(map(str, numbers)) or "none" for numbers in (ours, theirs))
    yield Violation(
        message=f"{source} {key} is {shown}, in the base it is {before}",
        expected=Quantity(before, key),
        actual=Quantity(shown, key),
        source=f"{source}, base",
        consequence="padding differs from the base's"
        if key == "pad_token_id"
        else "prompts begin or generation ends at another token than the model was trained with",
        fix=f"set {key} back to {before} unless the change was meant",
        severity=Severity.NOTE if key == "pad_token_id" else Severity.WARNING,
    )
