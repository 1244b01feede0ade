"""What the user's stack will say of a fault: the error texts of torch 2.13 and transformers 5.23, with the numbers.

Texts name no layer, so that the same fault in several layers stays one finding; ``T`` stands for the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Subject
from gqacheck.text import printable

RANDOM = "with ignore_mismatched_sizes=True it goes on with random numbers in its place"
BROADCAST = "it runs without an error: a size of 1 is broadcast, and the output is garbage"


def size(*numbers: int) -> str:
    """``torch.Size([60, 96])``."""
    return f"torch.Size([{', '.join(map(str, numbers))}])"


def refused(subject: Subject, name: str, stored: tuple[int, ...], built: tuple[int, ...]) -> str:
    """What loading says when the file holds ``stored`` and the class builds ``built``.

    name: of the tensor, without the layer: ``….mlp.up_proj.weight``.
    """
    name = printable(name, 120)
    if subject.container is Container.STATE_DICT:
        return (
            f"load_state_dict raises: size mismatch for {name}: copying a param with shape {size(*stored)} from "
            f"checkpoint, the shape in current model is {size(*built)}"
        )
    return (
        f"from_pretrained reports MISMATCH for {name}: Reinit due to size mismatch - ckpt: {size(*stored)} vs "
        f"model:{size(*built)}, and raises; {RANDOM}"
    )


def absent(subject: Subject, what: str) -> str:
    """What loading says when the class builds ``what`` and the file does not hold it."""
    if subject.container is Container.STATE_DICT:
        return f"load_state_dict raises: Missing key(s) in state_dict ({what}); with strict=False they stay random"
    return (
        f"from_pretrained reports {what} as MISSING (newly initialized) and runs with random weights there, "
        "without an error"
    )


def left_over(subject: Subject, what: str) -> str:
    """What loading says when the file holds ``what`` and the class has no place for it."""
    if subject.container is Container.STATE_DICT:
        return f"load_state_dict raises: Unexpected key(s) in state_dict ({what}); with strict=False they are dropped"
    return f"from_pretrained reports {what} as UNEXPECTED and drops it, without an error"


def once_saved(subject: Subject, text: str) -> str:
    """``text``, and for a whole-module pickle when that happens: once it is saved as a folder."""
    if subject.container is Container.MODULE:
        return f"the pickle runs as it is; once it is saved with save_pretrained, {text}"
    return text


def cannot_multiply(inputs: int, columns: int, rows: int) -> str:
    """The error of a Linear (weight ``rows`` x ``columns``) that is handed ``inputs`` features."""
    return f"mat1 and mat2 shapes cannot be multiplied (Tx{inputs} and {columns}x{rows})"


def must_match(a: int, b: int) -> str:
    """The error of an elementwise operation on widths ``a`` and ``b``, or that there is none."""
    if 1 in (a, b):
        return BROADCAST
    return f"The size of tensor a ({a}) must match the size of tensor b ({b})"


def ranges(numbers: Iterable[int], most: int = 12) -> str:
    """``0-2, 4-7, 9``: runs of numbers, at most ``most`` of them."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    return ", ".join(shown) + (f" and {len(runs) - most} more" if len(runs) > most else "")
