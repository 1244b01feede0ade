"""``gqacheck generate``: the text that a checkpoint writes after a prompt, as it is written.

Only the new text goes to standard output; why it ended is a line on standard error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.screen import Screen

MAX_NEW_TOKENS = 128
_WHOLE = 1 << 30  # characters: nothing is left out
_LAYOUT = re.compile(r"([\n\t])")
_ENDINGS = {
    "end": "ended where the checkpoint ends a text (its EOS)",
    "length": "stopped after {} tokens; --max-new-tokens asks for more",
    "positions": "stopped: the model has no position left",
}


def run(path: str, prompt: str, options: Mapping[str, Any], screen: Screen) -> int:
    """Writes what the checkpoint at ``path`` says after ``prompt`` to ``screen``, piece by piece, and returns 0.

    options: as on the command line, with underscores: ``max_new_tokens, temperature, top_p, greedy, seed``, and those
    of ``load_model``.

    Raises:
        UsageError: settings that make no sense, or a prompt that is empty or too long.
        MissingTokenizer: the checkpoint has no tokenizer that can be used, and none was named.
        CannotRun: the model cannot be rebuilt, or its forward pass fails.
    """
    _refuse_bytes(prompt)
    sampling = _sampling(options)
    loading = {k: options[k] for k in ("device", "dtype", "tokenizer", "config", "family", "head_dim") if k in options}
    model, tokenizer = _load(path, loading, screen)
    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.decode import stream_text
    from gqacheck.runtime.quiet import quiet_and_offline

    pieces = stream_text(model, tokenizer, prompt, **sampling)
    wrote = False
    try:
        with quiet_and_offline():
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as stop:
                    ending = str(stop.value)
                    break
                screen.write(shown(piece))
                screen.flush()
                wrote = True
    except OSError:  # nobody reads on
        raise
    except (Exception, KeyboardInterrupt) as error:
        if wrote:
            screen.write("\n")
            screen.flush()
        if isinstance(error, GqacheckError | MemoryError | KeyboardInterrupt):
            raise
        if type(error).__name__ == "OutOfMemoryError":
            raise CannotRun("not enough memory on the device: try --dtype bfloat16 or --device cpu") from error
        what = f"the forward pass raises {type(error).__name__}: {one_line(error)}"  # whatever the stack raises
        raise CannotRun(what, stage="forward") from error
    screen.write("\n")
    screen.flush()
    screen.remark(_ENDINGS[ending].format(sampling["max_new_tokens"]))
    return 0


def _refuse_bytes(prompt: str) -> None:
    """Nothing; raises UsageError for a prompt with bytes that are no UTF-8, which Python hands on as surrogates."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8 (from its character {error.start + 1} on)") from error


def shown(text: str) -> str:
    """``text`` with line breaks and tabs as they are, and everything else that a terminal would obey escaped."""
    return "".join(part if part in "\n\t" else printable(part, _WHOLE) for part in _LAYOUT.split(text) if part)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    greedy = bool(options.get("greedy"))
    if greedy and any(key in options for key in ("temperature", "top_p")):
        raise UsageError("--greedy takes the most likely token every time: leave --temperature and --top-p out")
    return {
        "max_new_tokens": options.get("max_new_tokens", MAX_NEW_TOKENS),
        "temperature": 0.0 if greedy else options.get("temperature", 1.0),
        "top_p": options.get("top_p", 0.95),
        "seed": options.get("seed", 0),
    }


def _load(path: str, loading: Mapping[str, Any], screen: Screen) -> tuple[Any, Any]:
    from gqacheck.runtime.load import load_model
    from gqacheck.runtime.running import require_run_extra

    require_run_extra("generate")
    from gqacheck.runtime.tokenizer import MissingTokenizer

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, tokenizer = load_model(path, **loading)
    notes = [str(w.message).removeprefix("load_model: ") for w in caught if str(w.message).startswith("load_model: ")]
    if tokenizer is None:
        why = next((note.replace("tokenizer=", "--tokenizer") for note in notes if "tokenizer=" in note), "")
        raise MissingTokenizer(
            why or "no tokenizer is stored with the checkpoint: name a folder or tokenizer file with --tokenizer"
        )
    for note in notes:
        screen.remark(note)
    return model, tokenizer
