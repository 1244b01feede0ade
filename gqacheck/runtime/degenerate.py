"""What is wrong with one generated text, without a model: repetition, loops, broken bytes, scripts that do not mix.

Plain functions over token ids and text, standard library alone.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence

REP_4 = 0.2
"""Share of repeated 4-grams above which a text repeats itself. Nucleus samples of healthy models have 0.01 on average,
people write 0.008; greedy text of the same healthy models has 0.59, which is why nothing is judged greedily."""

ZLIB_RATIO = 2.4
"""Bytes by deflated bytes above which a text repeats itself; prose of 128 tokens has about 1.5."""

LEAST_TOKENS = 16
"""Shorter texts are not judged on repetition or on their loss: a few tokens have neither."""

LOOP_TOKENS, LOOP_TURNS = 32, 3
"""A tail loops when its last 32 ids or more are at least three turns of one and the same sequence."""

SCRIPTS_TOGETHER, SCRIPT_LETTERS, SCRIPT_SHARE = 3, 3, 0.05
"""Script salad: three or more writing systems that do not belong together, each with 3 letters and a twentieth of all.
Two do not count: Russian with English names, or a loan word, is ordinary."""

_EAST_ASIAN = frozenset(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "KANGXI", "HALFWIDTH", "IDEOGRAPHIC"))
_SHOWN = {"CJK": "Han", "CANADIAN": "Canadian syllabics", "HALFWIDTH": "Katakana"}
_LATIN_FORMS = frozenset(("FULLWIDTH", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE", "DOUBLE-STRUCK", "SCRIPT"))
_ALLOWED_CONTROLS = "\n\t\r"


def repeated_ngrams(ids: Sequence[int], n: int = 4) -> float:
    """Share of the ``n``-grams of ``ids`` that occurred before in them: 1 - distinct / all; 0 for none.

    Source: rep-n of Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training".
    """
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    return 1 - len({tuple(ids[i : i + n]) for i in range(total)}) / total


def zlib_ratio(text: str) -> float:
    """UTF-8 bytes of ``text`` by their deflated bytes; 0 for an empty text."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0


def loop_period(ids: Sequence[int]) -> int:
    """After how many ids the tail of ``ids`` repeats itself exactly (the smallest period), 0 when it does not."""
    size = len(ids)
    for period in range(1, size // LOOP_TURNS + 1):
        covered = period
        while covered < size and ids[size - 1 - covered] == ids[size - 1 - covered + period]:
            covered += 1
        if covered >= max(LOOP_TOKENS, LOOP_TURNS * period):
            return period
    return 0


def replacements(text: str) -> int:
    """U+FFFD inside ``text``; a run of them at its end is a character that the last token cut off."""
    return text.rstrip("\ufffd").count("\ufffd")


def control_characters(text: str) -> int:
    """Control characters in ``text`` other than newline, tab and carriage return."""
    return sum(1 for c in text if unicodedata.category(c) == "Cc" and c not in _ALLOWED_CONTROLS)


def mixed_scripts(text: str) -> tuple[str, ...]:
    """Writing systems of ``text``, most frequent first, when they do not belong together; else ().

    Han, Kana, Hangul and Bopomofo count as one, as they stand beside each other in ordinary text. A single letter
    (a Greek one in a formula) is no script.
    """
    counts: Counter[str] = Counter()
    names: dict[str, Counter[str]] = {}
    previous, waiting = "", 0
    for character in text:
        family, name = _script(character)
        if family:
            waiting = waiting + 1 if family == previous else 1
            if family == "East Asian" or waiting > 2:
                counts[family] += 1
            elif waiting == 2:
                counts[family] += 2
            names.setdefault(family, Counter())[name] += 1
        previous = family
    letters = sum(counts.values())
    enough = [family for family, n in counts.most_common() if n >= max(SCRIPT_LETTERS, SCRIPT_SHARE * letters)]
    if len(enough) < SCRIPTS_TOGETHER:
        return ()
    return tuple(names[family].most_common(1)[0][0] for family in enough)


def _script(character: str) -> tuple[str, str]:
    """(what it belongs to, its writing system) of a letter; ("", "") for anything else."""
    if character.isascii():
        return ("Latin", "Latin") if character.isalpha() else ("", "")
    if not character.isalpha():
        return "", ""
    first = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    if not first or first in _LATIN_FORMS:
        return "", ""
    shown = _SHOWN.get(first, first.capitalize())
    return ("East Asian" if first in _EAST_ASIAN else shown), shown
