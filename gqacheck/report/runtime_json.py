"""What running a model showed, as plain data for the JSON report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gqacheck.geometry.outcomes import (
    BaseRelative,
    Consistency,
    Counterfactual,
    Generation,
    Induction,
    Perplexity,
    RuntimeFacts,
    Sample,
    SegmentLoss,
)
from gqacheck.rules.perplexity import band_of


def number(key: str, value: float | int | str | None) -> Mapping[str, Any]:
    """``{key: value}``; what JSON has no number for is null, and its text stands under ``key_text``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {key: None, f"{key}_text": str(value)}
    return {key: value}


def metrics_data(runtime: RuntimeFacts | None) -> dict[str, Any]:
    """What was measured, as plain data; empty when nothing was run."""
    return {
        "perplexity": [_perplexity(p) for p in runtime.perplexities] if runtime else [],
        "counterfactual": [_counterfactual(c) for c in runtime.counterfactuals] if runtime else [],
        "generation": _generation(runtime.generation) if runtime and runtime.generation else None,
        "consistency": _consistency(runtime.consistency) if runtime and runtime.consistency else None,
    }


def _counterfactual(c: Counterfactual) -> dict[str, Any]:
    return {
        "corpus": c.corpus,
        "protocol": c.protocol,
        **number("base", c.base),
        **number("masked", c.masked),
        **number("child", c.child),
        "tokens": c.tokens,
        "windows": c.windows,
        "verdict": c.verdict,
        "partial": c.partial,
        "note": c.note,
    }


def _perplexity(p: Perplexity) -> dict[str, Any]:
    return {
        "corpus": p.corpus,
        "protocol": p.protocol,
        "fingerprint": p.fingerprint,
        **number("value", p.value),
        **number("stderr", p.stderr),
        "tokens": p.tokens,
        "windows": p.windows,
        "complete": p.complete,
        "vocab_size": p.vocab_size,
        "segments": [_segment(segment) for segment in p.segments],
        "note": p.note,
        **_relative(p.relative),
        "protocol_name": p.protocol_name,
        "windows_in_all": p.windows_in_all,
        "text_tokens": p.text_tokens,
        "stopped_early": p.stopped_early,
        **_number_or_none("word_perplexity", p.word_perplexity),
        **_number_or_none("byte_perplexity", p.byte_perplexity),
        **_number_or_none("bits_per_byte", p.bits_per_byte),
        **_number_or_none("bos_value", p.bos_value),
        "bos_left_out_by": p.bos_left_out_by,
        "band": _band(p),
        "corpus_note": p.corpus_note,
        "known_corpus": p.known_corpus,
        "seconds": round(p.seconds, 3),
    }


def _relative(relative: BaseRelative | None) -> dict[str, Any]:
    """What stands beside a value that was measured beside its base; ``base_value`` and ``ratio`` are null without."""
    if relative is None:
        return {"base_value": None, "ratio": None, "relative": None}
    told = {
        **number("value", relative.value),
        **number("difference", relative.difference),
        **_number_or_none("difference_stderr", relative.difference_stderr),
        "tokens": relative.tokens,
        "windows": relative.windows,
        **_number_or_none("kl", relative.kl),
        **_number_or_none("top1_agreement", relative.top1_agreement),
        "positions": relative.positions,
        "base_broken": relative.base_broken,
        "left_out": list(relative.left_out),
    }
    return {**number("base_value", relative.base), **number("ratio", relative.ratio), "relative": told}


def _band(p: Perplexity) -> dict[str, Any] | None:
    band = band_of(p)
    if band is None:
        return None
    return {"healthy": list(band.healthy), "broken": band.broken, "exploded": band.exploded}


def _number_or_none(key: str, value: float | None) -> Mapping[str, Any]:
    return {key: None} if value is None else number(key, value)


def _segment(segment: SegmentLoss) -> dict[str, Any]:
    return {
        "name": segment.name,
        **number("nll", segment.nll),
        "tokens": segment.tokens,
        **number("unigram_nll", segment.unigram_nll),
        **number("uniform_nll", segment.uniform_nll),
        "windows": len(segment.window_nlls),
    }


def _generation(made: Generation) -> dict[str, Any]:
    return {
        "settings": made.settings,
        "seed": made.seed,
        "judged": list(made.judged),
        "left_out": list(made.left_out),
        "worst": made.worst,
        "note": made.note,
        "samples": [_sample(sample) for sample in made.samples],
        "base_samples": [_sample(sample) for sample in made.base_samples],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "language": sample.language,
        "text": sample.text,
        "tokens": sample.tokens,
        "ended": sample.ended,
        **number("rep_4", sample.rep_4),
        **number("zlib_ratio", sample.zlib_ratio),
        "loop_period": sample.loop_period,
        "replacements": sample.replacements,
        "controls": sample.controls,
        "scripts": list(sample.scripts),
        **number("nll", sample.nll),
        **_number_or_none("base_nll", sample.base_nll),
        "flags": list(sample.flags),
    }


def _consistency(found: Consistency) -> dict[str, Any]:
    return {
        "dtype": found.dtype,
        "comparisons": [
            {
                "check": one.check,
                "what": one.what,
                **number("difference", one.difference),
                "tolerance": one.tolerance,
                "agrees": None if one.skipped else one.agrees,
                "where": one.where,
                "skipped": one.skipped,
            }
            for one in found.comparisons
        ],
        "induction": None if found.induction is None else _induction(found.induction),
        "base_induction": None if found.base_induction is None else _induction(found.base_induction),
        "notes": list(found.notes),
    }


def _induction(found: Induction) -> dict[str, Any]:
    return {
        **number("first", found.first),
        **number("second", found.second),
        **number("drop", found.drop),
        "layers": _figures(found.layers),
        "layer_drops": _figures(found.layer_drops),
    }


def _figures(found: tuple[float, ...]) -> list[float | None]:
    return [round(figure, 4) if math.isfinite(figure) else None for figure in found]


def runtime_data(runtime: RuntimeFacts) -> dict[str, Any]:
    """How it was run, and what stopped it."""
    return {
        "device": runtime.device,
        "dtype": runtime.dtype,
        "failure": runtime.failure,
        "failure_stage": runtime.failure_stage,
        "non_finite": runtime.non_finite,
        "logits_seen": runtime.logits_seen,
        "notes": list(runtime.notes),
        "problem": runtime.problem,
        "base_problem": runtime.base_problem,
        "seconds": round(runtime.seconds, 3),
        "base_perplexity": [_perplexity(p) for p in runtime.bases],
    }
