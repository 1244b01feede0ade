"""Whether a model is broken only because nothing stands before its text.

Models trained with BOS in front (Gemma) look exploded without it, and a tokenizer that was saved wrongly forgets it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gqacheck.geometry.outcomes import Perplexity
from gqacheck.runtime.protocols import Protocol

if TYPE_CHECKING:
    from gqacheck.runtime.corpus import Corpus
    from gqacheck.runtime.running import Running

WINDOWS = 4
"""So many, spread over the text: the verdict is wanted, not the value."""


def with_bos(running: Running, corpus: Corpus, found: Perplexity) -> float | None:
    """The perplexity of a few windows with BOS in front, when ``found`` is worse than guessing without and that is not.

    None when BOS stood there already, is not known, or does not help.
    """
    from gqacheck.rules.perplexity import worse_than_guessing
    from gqacheck.runtime.perplexity import measure_perplexity
    from gqacheck.runtime.scoring import Tally

    encoder = running.encoder
    if encoder is None or encoder.prefix or not worse_than_guessing(found):
        return None
    bos = encoder.special("bos")
    if bos is None:
        stated = getattr(running.model.config, "bos_token_id", None)
        bos = stated if type(stated) is int else None
    if bos is None or not 0 <= bos < int(running.model.get_input_embeddings().weight.shape[0]):
        return None
    positions = min(corpus.protocol.positions or 512, 2048)
    again = measure_perplexity(
        running.model,
        replace(encoder, prefix=(bos,), prefix_name="BOS"),
        replace(corpus, protocol=Protocol(f"windows-{positions}", "windows", positions)),
        tally=Tally(),
        limit=WINDOWS,
    )
    return None if worse_than_guessing(again) else again.value
