"""What a comparison is made of, as plain values: a column for every checkpoint, and rows of what may stand side by
side. Whatever is None is unknown or was not measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Source: TypeAlias = Literal["checkpoint", "report"]
Way: TypeAlias = Literal["same windows", "quotient"]
"""How a ratio came about: both read the same windows in pairs, or one value divided by the other."""


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """One layer. n_experts: of a mixture, else None. attention, mlp: what kind stands there (``full``, ``gated``)."""

    index: int
    n_q_heads: int | None
    n_kv_heads: int | None
    head_dim: int | None
    intermediate_size: int | None
    attention: str = "full"
    mlp: str = "gated"
    n_experts: int | None = None


@dataclass(frozen=True, slots=True)
class Relative:
    """A perplexity beside the base's on the same windows, as the check measured it.

    ratio: value / base_value there. difference: nats per token, with its standard error.
    """

    base_value: float | None
    ratio: float | None
    difference: float | None = None
    difference_stderr: float | None = None
    base_broken: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One perplexity. not_comparable: why it may not be held against others, "" when it may."""

    corpus: str
    protocol: str
    protocol_name: str
    fingerprint: str
    value: float | None
    stderr: float | None = None
    tokens: int | None = None
    text_tokens: int | None = None
    windows: int | None = None
    windows_in_all: int | None = None
    vocab_size: int | None = None
    bits_per_byte: float | None = None
    relative: Relative | None = None
    not_comparable: str = ""


@dataclass(frozen=True, slots=True)
class Texts:
    """Generated texts: how many were judged and flagged, and the mean share of 4-grams that occurred before."""

    settings: str
    judged: int
    flagged: int
    rep_4: float | None


@dataclass(frozen=True, slots=True)
class Column:
    """One checkpoint. source: whether it was read here or stands in a saved report.

    verdict: ``pass``, ``fail``, ``error`` or ``unknown``, and exit_code: the check's own. problem: why something could
    not be read or measured, "" for nothing; missing: what of ``perplexity``, ``generation`` and ``speed`` was asked for
    and is not there. errors: codes of the check's errors. base: the path that ratios in ``readings`` are to. run_as:
    dtype and device of the run. version: of the gqacheck that checked it. report: the file that it was read from.
    """

    path: str
    source: Source = "checkpoint"
    name: str = ""
    is_base: bool = False
    verdict: str = "unknown"
    exit_code: int | None = None
    problem: str = ""
    errors: tuple[str, ...] = ()
    family: str | None = None
    parameters: int | None = None
    file_bytes: int | None = None
    layers: tuple[LayerSizes, ...] | None = None
    base: str | None = None
    readings: tuple[Reading, ...] = ()
    texts: Texts | None = None
    run_as: str = ""
    version: str = ""
    report: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ratio:
    """A perplexity as a multiple of the base's, with a standard error where there is one."""

    value: float
    stderr: float | None
    way: Way
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A reading in its row. no_ratio: why there is no ratio where one would be expected."""

    reading: Reading
    ratio: Ratio | None = None
    no_ratio: str = ""


@dataclass(frozen=True, slots=True)
class ReadingRow:
    """Perplexities of one text (``fingerprint``) cut into the same tokens by one protocol; a cell for every column.

    apart: why it does not stand in the row of the same corpus above it, "" for the first.
    """

    corpus: str
    protocol: str
    protocol_name: str
    fingerprint: str
    text_tokens: int | None
    cells: tuple[Cell | None, ...]
    apart: str = ""


@dataclass(frozen=True, slots=True)
class TextsRow:
    """Generated texts with the same prompts and settings; a cell for every column."""

    settings: str
    cells: tuple[Texts | None, ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one model in every round, prefill and decode; and by the reference's of the same round."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    prefill_ratio: tuple[float, ...] = ()
    decode_ratio: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """How fast the columns ran. settings: the sentence that makes it repeatable; reference: index of the column that
    ratios are to; cells: None where it was not measured."""

    settings: str
    reference: int
    cells: tuple[Speed | None, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The whole comparison. base: index of the base's column. base_path: what the ratios are to, also where the base
    has no column."""

    columns: tuple[Column, ...]
    base: int | None = None
    base_path: str | None = None
    readings: tuple[ReadingRow, ...] = ()
    texts: tuple[TextsRow, ...] = ()
    speed: SpeedRow | None = None
    notes: tuple[str, ...] = field(default=())
    version: str = ""

    @property
    def exit_code(self) -> int:
        """3 when something could not be read or measured, else 0: what was found does not count here."""
        return 3 if any(c.problem or c.missing or c.verdict in ("error", "unknown") for c in self.columns) else 0
