"""A callback that stops a Trainer before its first step when the model is not sound.

Three lines before days of LoRA::

    from gqacheck.integrations.transformers import PreflightCallback

    trainer.add_callback(PreflightCallback(base="parent/"))
    trainer.train()

It works with every Trainer that takes callbacks: transformers, TRL's SFTTrainer, LLaMA-Factory and axolotl. The check
reads the live model's weights and its parent's headers and weights; it changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from gqacheck.errors import UsageError

INSISTS_ON = ("shapes", "pairing")
"""What must have been checked before training starts, unless the caller says otherwise."""


class PreflightCallback(TrainerCallback):  # type: ignore[misc]
    """Checks the Trainer's model before step 0, and raises ``UnsoundModelError`` with the report when it is not sound.

    base: the parent before pruning, a path or a live module; without one the pairing cannot be checked, and training
    does not start unless ``require=("shapes",)`` says that this is meant. checkpoint: check this file or folder instead
    of the live model (for models whose parameters are sharded, DeepSpeed ZeRO-3 and FSDP). options: those of
    ``gqacheck.check_model`` (``ppl=["held-out.txt"]``, ``generate=True``), or of ``gqacheck.check`` with a checkpoint.

    ``report`` is the report of the last check, None before it.
    """

    def __init__(
        self,
        base: Any = None,
        *,
        require: Sequence[str] = INSISTS_ON,
        checkpoint: str | os.PathLike[str] | None = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        self.base = base
        self.require = tuple(require)
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.options = options
        self.report: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Returns when the model is sound.

        Raises:
            UnsoundModelError: it is not, or what ``require`` names was not checked; the message is the report.
            UsageError: the options make no sense, or the parameters are sharded and no checkpoint is named.
        """
        from gqacheck.api import UnsoundModelError, check, check_model
        from gqacheck.report.text import render_checkpoint

        options = {"base": self.base, "require": self.require, **self.options}
        if self.checkpoint is not None:
            self.report = check(self.checkpoint, **options)
        else:
            model = given.get("model")
            _refuse_sharded(model)
            tokenizer = self.tokenizer or given.get("processing_class") or given.get("tokenizer")
            self.report = check_model(model, tokenizer, **options)
        if self.report.exit_code:
            raise UnsoundModelError(
                "training was not started: the model is not sound\n\n"
                f"{render_checkpoint(self.report)}{_hint(self.base, self.require)}",
                self.report,
            )


def _refuse_sharded(model: Any) -> None:
    """Nothing; raises UsageError for a model of which this process holds only a part."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_local_tensor") or "_flat_param" in name:
            raise UsageError(
                f"the parameters are sharded ({name}), so this process does not see whole heads: check the files "
                "instead, PreflightCallback(base, checkpoint='ckpt/')"
            )


def _hint(base: Any, require: Sequence[str]) -> str:
    if base is not None or "pairing" not in require:
        return ""
    return (
        "\nPreflightCallback(base='parent/') compares the heads with the parent's; without a parent, "
        "PreflightCallback(require=('shapes',)) starts training on what the shapes show.\n"
    )
