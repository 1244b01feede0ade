import json

import pytest

from gqacheck.runtime.tokenizer_bounds import refuse_expansion


def replacing(pattern: dict[str, str], content: str, times: int) -> str:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return json.dumps({"normalizer": {"type": "Sequence", "normalizers": [step] * times}})


@pytest.mark.parametrize(
    "text",
    [
        replacing({"String": "e"}, "ee", 40),
        replacing({"Regex": "x*"}, "y", 40),
        json.dumps({"pre_tokenizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 2000}}),
        "[]",
        "{",
        "[" * 100_000,
    ],
)
def test_tokenizer_that_multiplies_the_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        refuse_expansion(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        replacing({"String": " "}, "▁", 1),
        replacing({"Regex": " {2,}"}, "▁", 2),
        replacing({"String": "``"}, '"', 60),
        json.dumps({"normalizer": None, "pre_tokenizer": {"type": "ByteLevel"}}),
    ],
)
def test_tokenizer_of_ordinary_replacements_is_let_through(text: str) -> None:
    refuse_expansion(text)
