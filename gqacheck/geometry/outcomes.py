"""What happened when a model was run, as plain values: ``runtime`` fills them, GQA7xx rules and reports read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Damage: TypeAlias = Literal["pairing", "over-pruned", "loader", "base-broken", "fine"]
Flag: TypeAlias = Literal["repeats", "compresses", "loops", "replacement", "control", "scripts", "salad"]
"""What is wrong with one generated text, see ``Sample``."""
Check: TypeAlias = Literal["backends", "cache", "prefix", "padding"]


@dataclass(frozen=True, slots=True)
class SegmentLoss:
    """Token-weighted negative log-likelihood of one segment of a corpus, in nats per token.

    unigram_nll: what an out-of-sample unigram model of the same text pays per token. window_nlls: mean NLL of each
    window that was run, in the order of the text; window_numbers: which windows of the plan those are.
    nll may be NaN or infinite; the rules say so.
    """

    name: str
    nll: float
    tokens: int
    unigram_nll: float
    uniform_nll: float
    window_nlls: tuple[float, ...] = ()
    window_tokens: tuple[int, ...] = ()
    window_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BaseRelative:
    """A perplexity beside the base's on the same windows, on the segments where the base is better than guessing.

    base, value: both perplexities there; ratio: value / base. difference: mean over tokens of the child's loss minus
    the base's (nats), with its standard error over windows (None from one window). kl: mean KL divergence from the
    base's next-token distribution to the child's (nats), top1_agreement: share of positions at which both would say
    the same token; both over ``positions`` scored positions, None when the vocabularies differ.
    base_broken: the base is worse than guessing on every segment; nothing else is said then. left_out: segments on
    which it is.
    """

    base: float
    value: float
    ratio: float
    difference: float
    difference_stderr: float | None
    tokens: int
    windows: int
    kl: float | None = None
    top1_agreement: float | None = None
    positions: int = 0
    base_broken: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Perplexity:
    """One perplexity with everything that makes it comparable. ``value`` and ``stderr`` are in perplexity units.

    corpus: as it was asked for. protocol: the sentence; protocol_name: ``gptq-2048``, ``windows-512``. fingerprint:
    SHA-256 of the text. windows: how many were run, of windows_in_all. stopped_early: broken for certain before all
    were run. word_perplexity, byte_perplexity, bits_per_byte: from the original text, where the protocol has them.
    bos_value: what a few of the same windows measure with BOS in front, where that alone changes the verdict;
    bos_left_out_by: who left it out, the tokenizer or the protocol ("" with no bos_value). text_tokens: of the whole
    text, scored or not. corpus_note: what was done to the text. known_corpus: ``wikitext2``, ``ptb``, ``c4`` or
    ``smoke`` when the text is all of that corpus that the protocol's tools read, "" otherwise.
    """

    corpus: str
    protocol: str
    fingerprint: str
    value: float
    stderr: float | None
    tokens: int
    windows: int
    complete: bool
    vocab_size: int
    segments: tuple[SegmentLoss, ...] = ()
    seconds: float = 0.0
    note: str = ""
    protocol_name: str = ""
    windows_in_all: int = 0
    stopped_early: bool = False
    word_perplexity: float | None = None
    byte_perplexity: float | None = None
    bits_per_byte: float | None = None
    bos_value: float | None = None
    bos_left_out_by: Literal["", "tokenizer", "protocol"] = ""
    relative: BaseRelative | None = None
    text_tokens: int = 0
    corpus_note: str = ""
    known_corpus: str = ""

    @property
    def is_ptb(self) -> bool:
        """Whether the text is the Penn Treebank, on which alone nothing fails."""
        return self.corpus.partition("=")[0] == "ptb"


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Where a perplexity comes from, on one corpus: the parent, the parent with the child's missing heads and channels
    masked, and the child; same windows for all three.

    verdict: ``pairing`` (the masked parent is fine, so the rest is wrong pairing), ``over-pruned`` (the masked parent
    is as bad as the child), ``loader`` (the masked parent is fine and the pairing too: shapes, attributes or the
    loader), ``base-broken`` (the parent itself is), ``fine`` (the child is about as good as the masked parent).
    partial: some of the child's parts could not be masked in the parent; ``note`` says which.
    """

    corpus: str
    protocol: str
    base: float
    masked: float
    child: float
    tokens: int
    windows: int
    verdict: Damage
    partial: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text with what was measured on it.

    rep_4: share of 4-grams of token ids that occurred before in the text. zlib_ratio: bytes by compressed bytes.
    loop_period: tokens after which the tail repeats itself exactly, 0 when it does not. replacements: U+FFFD inside
    the text, its cut-off end not counted. controls: control characters. scripts: writing systems of its letters, most
    frequent first, when they do not belong together, else (). nll: mean loss (nats per token) under the model that
    wrote it; base_nll: the same under the base. flags: what is wrong with it.
    """

    prompt: str
    language: str
    text: str
    tokens: int
    ended: bool = False
    rep_4: float = 0.0
    zlib_ratio: float = 0.0
    loop_period: int = 0
    replacements: int = 0
    controls: int = 0
    scripts: tuple[str, ...] = ()
    nll: float = 0.0
    base_nll: float | None = None
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampled texts of the checkpoint, and of the base with the same prompts and seeds when there is one.

    settings: the sentence that makes it repeatable. judged: languages of the prompts whose samples count; left_out:
    the others, which the model (the base, when there is one) does not read. worst: index of the worst sample.
    """

    settings: str
    samples: tuple[Sample, ...]
    base_samples: tuple[Sample, ...] = ()
    judged: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    worst: int | None = None
    seed: int = 0
    seconds: float = 0.0
    note: str = ""

    def flagged(self, *flags: Flag, base: bool = False) -> int:
        """How many judged samples (of the base's, with ``base``) have one of ``flags``."""
        samples = self.base_samples if base else self.samples
        return sum(1 for sample in samples if sample.language in self.judged and set(flags) & set(sample.flags))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same logits. difference: largest absolute difference by the standard deviation of the logits.

    what: both ways in words (``eager beside sdpa attention``). where: position and text of the largest difference.
    skipped: why it was not compared, "" when it was.
    """

    check: Check
    what: str
    difference: float = 0.0
    tolerance: float = 0.0
    where: str = ""
    skipped: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two are within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Induction:
    """Mean loss (nats per token) on a random sequence and on its second copy right behind it.

    layers: per layer, the attention that its best head pays to the token after the earlier copy. layer_drops: per
    layer, ``drop`` as its output shows it, read by the model's own final norm and lm_head; the last one is the model's
    own, on some of the sequences. () where they could not be measured.
    """

    first: float
    second: float
    layers: tuple[float, ...] = ()
    layer_drops: tuple[float, ...] = ()

    @property
    def drop(self) -> float:
        """Nats per token that having seen the sequence before saves."""
        return self.first - self.second


@dataclass(frozen=True, slots=True)
class Consistency:
    """Whether every way of running the model gives the same logits, and whether it still copies what it saw."""

    comparisons: tuple[Comparison, ...] = ()
    induction: Induction | None = None
    base_induction: Induction | None = None
    dtype: str = "float32"
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What happened when the model was rebuilt and run.

    failure: one sentence, with the stage that failed (``rebuild``, ``tokenizer``, ``forward``, ``generation``,
    ``consistency``) in failure_stage. problem: why what was measured does not count, "" when it does (a base that is
    itself broken, two corpora with the same digits). base_problem: why what was measured does not stand beside a base
    although one was given, "" when it does.
    non_finite: number of logits that were NaN or Inf, of logits_seen; non_finite_from: the token of a generated text at
    which they began when those before were finite, else 0. counterfactuals: one per corpus, when --base
    was given and there was something to explain. bases: the base's own perplexities, in the order of perplexities.
    """

    perplexities: tuple[Perplexity, ...] = ()
    failure: str | None = None
    failure_stage: str | None = None
    non_finite: int = 0
    logits_seen: int = 0
    non_finite_from: int = 0
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    seconds: float = 0.0
    counterfactuals: tuple[Counterfactual, ...] = ()
    problem: str = ""
    bases: tuple[Perplexity, ...] = ()
    generation: Generation | None = None
    consistency: Consistency | None = None
    asked: frozenset[str] = field(default_factory=frozenset)
    base_problem: str = ""
