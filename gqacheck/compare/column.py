"""One checkpoint of a JSON report to a column. Reports made here and reports from a file go the same way, so that both
make the same table; every value is looked at as if a stranger had written it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gqacheck.compare.facts import Column, LayerSizes, Reading, Relative, Source, Texts
from gqacheck.compare.untrusted import items, mapping, positive, real, text, whole

MOST_LAYERS = 4096
MOST_READINGS = 64
MOST_SAMPLES = 4096
MOST_FINDINGS = 100_000
_PATH = 1000


def column_of(entry: Mapping[str, Any], source: Source, report: str = "") -> Column:
    """The column of one entry under ``checkpoints``. report: the file it stands in."""
    verdict, exit_code = entry.get("verdict"), whole(entry.get("exit_code"))
    metrics, runtime = mapping(entry.get("metrics")), mapping(entry.get("runtime"))
    return Column(
        path=text(entry.get("path"), _PATH) or "unknown",
        source=source,
        verdict=verdict if verdict in ("pass", "fail", "error") else "unknown",
        exit_code=exit_code if exit_code is not None and exit_code <= 3 else None,
        problem=text(entry.get("error"), 1000) or _unmet(entry),
        errors=_errors(entry),
        family=text(entry.get("family"), 40) or None,
        parameters=whole(entry.get("parameters")),
        file_bytes=whole(entry.get("file_bytes")),
        layers=_layers(mapping(entry.get("geometry")).get("layers")),
        base=text(mapping(entry.get("base")).get("path"), _PATH) or None,
        readings=tuple(map(_reading, map(mapping, items(metrics.get("perplexity"), MOST_READINGS)))),
        texts=_texts(mapping(metrics.get("generation"))),
        run_as=", ".join(filter(None, (text(runtime.get("dtype"), 20), text(runtime.get("device"), 20)))),
        version=text(entry.get("version"), 40),
        report=report,
    )


def not_run(entry: Mapping[str, Any]) -> str:
    """Why the model of an entry did not run, in a sentence."""
    runtime = mapping(entry.get("runtime"))
    details = mapping(mapping(entry.get("claim_details")).get("runtime"))
    said = text(runtime.get("failure"), 1000) or text(entry.get("error"), 1000) or text(details.get("reason"), 1000)
    return said or "the model was not run"


def _unmet(entry: Mapping[str, Any]) -> str:
    """What ``--require`` missed, which the check says in its notes."""
    said = "; ".join(filter(None, (text(note, 300) for note in items(entry.get("notes"), 20))))
    return said if entry.get("verdict") == "error" or entry.get("exit_code") == 3 else ""


def _errors(entry: Mapping[str, Any]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for finding in map(mapping, items(entry.get("findings"), MOST_FINDINGS)):
        code = text(finding.get("code"), 12)
        if code and finding.get("severity") == "error":
            found[code] = None
    return tuple(found)


def _layers(value: Any) -> tuple[LayerSizes, ...] | None:
    layers = items(value, MOST_LAYERS)
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    found = []
    for number, layer in enumerate(layers):
        index = whole(layer.get("index"))
        found.append(
            LayerSizes(
                number if index is None else index,
                whole(layer.get("n_q_heads")),
                whole(layer.get("n_kv_heads")),
                whole(layer.get("head_dim")),
                whole(layer.get("intermediate_size")),
                text(layer.get("attention"), 20) or "unknown",
                text(layer.get("mlp"), 20) or "unknown",
                whole(layer.get("n_experts")),
            )
        )
    return tuple(found)


def _reading(entry: Mapping[str, Any]) -> Reading:
    windows, in_all = whole(entry.get("windows")), whole(entry.get("windows_in_all"))
    protocol, fingerprint = text(entry.get("protocol"), 400), text(entry.get("fingerprint"), 64)
    value = positive(entry, "value")
    return Reading(
        corpus=text(entry.get("corpus"), 120) or "unknown",
        protocol=protocol,
        protocol_name=text(entry.get("protocol_name"), 40) or text(protocol.partition(":")[0], 40),
        fingerprint=fingerprint,
        value=value,
        stderr=_finite(positive(entry, "stderr")),
        tokens=whole(entry.get("tokens")),
        text_tokens=whole(entry.get("text_tokens")) or None,
        windows=windows,
        windows_in_all=in_all or None,
        vocab_size=whole(entry.get("vocab_size")),
        bits_per_byte=_finite(positive(entry, "bits_per_byte")),
        relative=_relative(entry),
        not_comparable=_not_comparable(entry, value, protocol, fingerprint, windows, in_all),
    )


def _not_comparable(
    entry: Mapping[str, Any],
    value: float | None,
    protocol: str,
    fingerprint: str,
    windows: int | None,
    in_all: int | None,
) -> str:
    if value is None:
        return "no value"
    if not protocol or not fingerprint:
        return "unknown protocol" if not protocol else "unknown text"
    counted = windows is not None and bool(in_all)
    part = f"{windows:,} of {in_all:,} windows" if counted else "part of the text"
    if entry.get("stopped_early") not in (None, False):
        return f"stopped at {windows:,} of {in_all:,}" if counted else "stopped early"
    whole_text = windows is None or not in_all or windows == in_all
    return "" if entry.get("complete") is True and whole_text else part


def _relative(entry: Mapping[str, Any]) -> Relative | None:
    told = entry.get("relative")
    if not isinstance(told, dict):
        return None
    return Relative(
        base_value=positive(entry, "base_value"),
        ratio=positive(entry, "ratio"),
        difference=_finite(real(told, "difference")),
        difference_stderr=_finite(positive(told, "difference_stderr")),
        base_broken=told.get("base_broken") not in (None, False),
        left_out=tuple(filter(None, (text(name, 40) for name in items(told.get("left_out"), 100)))),
    )


def _texts(made: Mapping[str, Any]) -> Texts | None:
    samples = [mapping(sample) for sample in items(made.get("samples"), MOST_SAMPLES)]
    if not samples:
        return None
    languages = {name for name in items(made.get("judged"), 100) if isinstance(name, str)}
    judged = [sample for sample in samples if text(sample.get("language")) in languages]
    shares = [share for sample in judged if (share := _finite(positive(sample, "rep_4"))) is not None]
    return Texts(
        settings=text(made.get("settings"), 400),
        judged=len(judged),
        flagged=sum(1 for sample in judged if items(sample.get("flags"), 100)),
        rep_4=math.fsum(shares) / len(shares) if shares and len(shares) == len(judged) else None,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
