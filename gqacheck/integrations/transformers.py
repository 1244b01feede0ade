"""A callback that stops a Trainer before its first step when the model is not sound.

Three lines before days of LoRA::

    from gqacheck.integrations.transformers import PreflightCallback

    trainer.add_callback(PreflightCallback(base="parent/"))
    trainer.train()

It works with every Trainer that takes callbacks: transformers, TRL's SFTTrainer, LLaMA-Factory and axolotl. The check
reads the live model's weights and its parent's headers and weights; it changes nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from gqacheck.api import UnsoundModelError, check, check_model
from gqacheck.errors import UsageError
from gqacheck.flags import suggestion
from gqacheck.options import from_python
from gqacheck.report.text import render_checkpoint
from gqacheck.result import CheckpointReport, Verdict

INSISTS_ON = ("shapes", "pairing")
"""What must have been checked before training starts, unless the caller says otherwise."""


class PreflightCallback(TrainerCallback):  # type: ignore[misc]
    """Checks the Trainer's model before step 0, and raises ``UnsoundModelError`` with the report when it is not sound.

    base: the parent before pruning, a path or a live module; without one the pairing cannot be checked, and training
    does not start unless ``require=("shapes",)`` says that this is meant. checkpoint: check this file or folder instead
    of the live model (for models whose parameters are sharded, DeepSpeed ZeRO-3 and FSDP, or packed, 4-bit loading);
    base and tokenizer are then paths too. options: those of ``gqacheck.check_model`` (``ppl=["held-out.txt"]``,
    ``generate=True``), or of ``gqacheck.check`` with a checkpoint.

    ``report`` is the report of the last check, None before it.

    Raises:
        UsageError: an option that there is not, or a value that makes no sense.
    """

    def __init__(
        self,
        base: Any = None,
        *,
        require: Sequence[str] | str = INSISTS_ON,
        checkpoint: str | os.PathLike[str] | None = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        _hold_paths(base, checkpoint, tokenizer)
        _hold_options(options, check_model if checkpoint is None else check)
        if require is None:
            raise UsageError("require takes names, such as ('shapes', 'pairing'), not None")
        self.base = base
        self.require: tuple[str, ...] = from_python(require=require)["require"]
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.options = options
        self.report: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Returns when the model is sound.

        Raises:
            UnsoundModelError: it is not, or what ``require`` names was not checked; the message is the report.
            UsageError: the parameters are sharded and no checkpoint is named.
        """
        options = {"base": self.base, "require": self.require, **self.options}
        if self.checkpoint is not None:
            self.report = check(self.checkpoint, tokenizer=self.tokenizer, **options)
        else:
            model = given.get("model")
            _refuse_sharded(model)
            tokenizer = self.tokenizer or given.get("processing_class") or given.get("tokenizer")
            self.report = check_model(model, tokenizer, **options)
        if self.report.exit_code:
            unknown = self.report.verdict is Verdict.ERROR
            what = "the model could not be shown to be sound" if unknown else "the model is not sound"
            raise UnsoundModelError(
                f"training was not started: {what}\n\n{render_checkpoint(self.report)}{self._hint(self.report)}",
                self.report,
            )

    def _hint(self, report: CheckpointReport) -> str:
        """What to give the callback so that it can check what it could not."""
        if self.checkpoint is None and report.checkpoint is not None and report.checkpoint.quantization is not None:
            return (
                "\nThe weights in memory are packed. PreflightCallback(base='parent/', checkpoint='pruned/') checks "
                "the files they were loaded from.\n"
            )
        if self.base is None and "pairing" in self.require:
            return (
                "\nPreflightCallback(base='parent/') compares the heads with the parent's; without a parent, "
                "PreflightCallback(require=('shapes',)) starts training on what the shapes show.\n"
            )
        return ""


def _hold_paths(base: Any, checkpoint: Any, tokenizer: Any) -> None:
    """Raises UsageError where a path is not one, or a live thing stands where only a path can."""
    if checkpoint is None:
        if isinstance(tokenizer, (str, os.PathLike)):
            raise UsageError("tokenizer takes the tokenizer itself: AutoTokenizer.from_pretrained(PATH) makes one")
        return
    for name, value in (("checkpoint", checkpoint), ("base", base), ("tokenizer", tokenizer)):
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise UsageError(f"{name} takes a path where a checkpoint is named, not a {type(value).__name__}")


def _hold_options(options: Mapping[str, Any], taker: Callable[..., Any]) -> None:
    """Raises UsageError for an option that ``taker`` does not have, and for a value that makes no sense."""
    known = [name for name, each in inspect.signature(taker).parameters.items() if each.kind is each.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            close = suggestion(name, [*known, "checkpoint"])
            raise UsageError(f"PreflightCallback has no option {name[:60]!r}{close}")
    from_python(**options)


def _refuse_sharded(model: Any) -> None:
    """Nothing; raises UsageError for a model of which this process holds only a part."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_local_tensor") or "_flat_param" in name:
            raise UsageError(
                f"the parameters are sharded ({name}), so this process does not see whole heads: check the files "
                "instead, PreflightCallback(base='parent/', checkpoint='pruned/')"
            )
