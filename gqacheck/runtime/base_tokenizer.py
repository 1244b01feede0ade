"""Whether a base reads text as the child does: its own tokenizer beside the one that both are run with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError
from gqacheck.runtime.tokenizer import TextEncoder, make_encoder, open_tokenizer

ALIKE = 0.9
"""Share of ids that two forms of one tokenizer have in common at least: they may differ in how they read a special
token in the text or its first space. Small tokenizers that were trained apart on like texts shared two thirds."""
_PROBE = 1500
"""Characters of each part of the built-in text."""


@dataclass(frozen=True, slots=True)
class OwnTokenizer:
    """A base's own tokenizer beside the one in use. same: share of the ids of one text that are the same; puts_bos:
    whether it puts something in front of a text, and used_puts_bos whether the one in use does."""

    same: float
    puts_bos: bool
    used_puts_bos: bool

    @property
    def another(self) -> str:
        """Why the base is not compared, "" when the same text has the same ids."""
        if self.same >= ALIKE:
            return ""
        return (
            f"the base has another tokenizer: of the ids of one text {100 * self.same:.0f} % are the same, so it "
            "cannot judge how this file reads; name a base with this file's tokenizer, or the right tokenizer of both "
            "with --tokenizer"
        )

    @property
    def note(self) -> str:
        """That one of them forgets BOS, "" when they agree."""
        if self.puts_bos == self.used_puts_bos:
            return ""
        if self.puts_bos:
            return "the base's own tokenizer puts BOS before a text: it was read without, as this file was"
        return "the base's own tokenizer puts no BOS before a text: it was read with BOS, as this file was"


def own_tokenizer(base: Checkpoint, used: TextEncoder) -> OwnTokenizer | None:
    """The base's own tokenizer beside the one in use; None when it has none that can be read."""
    from gqacheck.runtime.corpora.asked import SMOKE
    from gqacheck.runtime.corpus import load_corpus

    try:
        own = make_encoder(open_tokenizer(base))
        texts = [segment.text[:_PROBE] for segment in load_corpus(SMOKE).segments]
        theirs, ours = (Counter(i for text in texts for i in one.encode(text)) for one in (own, used))
    except GqacheckError:
        return None
    same = (theirs & ours).total() / max(1, theirs.total(), ours.total())
    return OwnTokenizer(same, bool(own.prefix), bool(used.prefix))
