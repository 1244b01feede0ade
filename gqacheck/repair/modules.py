"""The model of a repaired whole-module pickle: the stock class at the stored sizes, and the tokenizer beside it."""

from __future__ import annotations

import copy
from typing import Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError
from gqacheck.geometry.facts import Geometry
from gqacheck.text import printable


def rebuild_module(
    made: Checkpoint, geometry: Geometry, source: Checkpoint, *, with_tokenizer: bool
) -> tuple[Any, Any, list[str]]:
    """(model with weights as stored, tokenizer or None, sentences on what is not as it was).

    Raises:
        CannotRun: the installed transformers cannot hold it, with the reason.
        ReadError: the bytes of a weight are not there.
    """
    from gqacheck.runtime.load import adopt_generation_config
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.running import choose_dtype

    notes: list[str] = []
    tokenizer = None
    with quiet_and_offline():
        rebuilt = rebuild(made, geometry)
        model = rebuilt.model
        model.config.dtype = choose_dtype(made, "auto", "cpu")
        model.config.architectures = [type(model).__name__]
        adopt_generation_config(model, source.generation_config)
        _own_configs(model)
    notes += rebuilt.notes
    if with_tokenizer and source.tokenizer is not None:
        try:
            tokenizer = _picklable_tokenizer(source)
        except GqacheckError as error:
            notes.append(f"the tokenizer is not pickled beside the model: {printable(error, 300)}")
    return model, tokenizer, notes


def _picklable_tokenizer(source: Checkpoint) -> Any:
    """The tokenizer as an object of transformers, which can be pickled beside the model.

    Raises:
        MissingTokenizer: it cannot be recovered, or only as an object of this package.
    """
    from gqacheck.runtime.tokenizer import MissingTokenizer, SentencePieceTokenizer, open_tokenizer

    tokenizer = open_tokenizer(source)
    if isinstance(tokenizer, SentencePieceTokenizer):
        raise MissingTokenizer(
            "a sentencepiece model without its transformers class; keep the original tokenizer files"
        )
    return tokenizer


def _own_configs(model: Any) -> None:
    """Gives attention modules that read head counts from the config a copy of it, which needs no class of ours."""
    from gqacheck.runtime.skeleton import LayerConfig

    for module in model.modules():
        config = module.__dict__.get("config")
        if isinstance(config, LayerConfig):
            own = copy.copy(model.config)
            own.__dict__.update({key: value for key, value in vars(config).items() if key != "_shared"})
            module.config = own
