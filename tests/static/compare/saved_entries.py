"""Checkpoints of JSON reports made by hand, as ``gqacheck --format json`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROTOCOL = "windows-512: non-overlapping windows of 512 positions"
TEXT = "7a929927d444" + "0" * 52
SETTINGS = "16 texts of 128 tokens, nucleus 0.95, seed 0"
HOSTILE = "a|b`c`\n<b>x</b>\x1b[31m![i](http://evil) @you #1 \\"


def reading(value: float | None = 20.0, **changes: Any) -> dict[str, Any]:
    """A complete perplexity."""
    return {
        "corpus": "smoke",
        "protocol": PROTOCOL,
        "fingerprint": TEXT,
        "value": value,
        "stderr": 0.4,
        "tokens": 8188,
        "windows": 16,
        "complete": True,
        "vocab_size": 128256,
        "base_value": None,
        "ratio": None,
        "relative": None,
        "protocol_name": "windows-512",
        "windows_in_all": 16,
        "text_tokens": 8204,
        "stopped_early": False,
        "bits_per_byte": None,
        **changes,
    }


def beside(value: float, base: float, **changes: Any) -> dict[str, Any]:
    """A perplexity that was measured beside a base."""
    told = {"value": value, "difference": 0.3, "difference_stderr": 0.02, "base_broken": False, "left_out": []}
    return reading(value, base_value=base, ratio=value / base, relative=told | changes)


def layer(index: int, n_q: int | None = 32, n_kv: int | None = 8, width: int | None = 14336) -> dict[str, Any]:
    """One layer."""
    return {
        "index": index,
        "n_q_heads": n_q,
        "n_kv_heads": n_kv,
        "head_dim": 128,
        "intermediate_size": width,
        "attention": "full",
        "mlp": "gated",
        "n_experts": None,
    }


def sample(flags: list[str], language: str = "english", rep_4: Any = 0.1) -> dict[str, Any]:
    """One generated text."""
    return {"language": language, "flags": flags, "rep_4": rep_4, "text": "word " * 10}


def entry(path: str = "models/a", *readings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One healthy checkpoint of 32:8 heads, cut to 24:6 in layers 4-28 unless told otherwise."""
    made = {
        "verdict": "pass",
        "exit_code": 0,
        "path": path,
        "family": "llama",
        "parameters": 6_633_914_368,
        "file_bytes": 13_267_888_128,
        "base": None,
        "geometry": {"layers": [layer(i, 24, 6) if 4 <= i < 29 else layer(i) for i in range(32)]},
        "claim_details": {},
        "findings": [],
        "metrics": {"perplexity": list(readings), "generation": None},
        "runtime": {"device": "cpu", "dtype": "float32", "failure": None},
        "error": None,
        "notes": [],
    }
    return made | changes


def report(*entries: Any, **changes: Any) -> dict[str, Any]:
    """A whole report."""
    made = {"schema": "gqacheck/1", "version": "0.1.0", "verdict": "pass", "exit_code": 0, "checkpoints": list(entries)}
    return made | changes


def write(path: Path, *entries: Any, **changes: Any) -> str:
    """The report as a file; returns its path."""
    path.write_text(json.dumps(report(*entries, **changes), indent=1), encoding="utf-8")
    return str(path)
