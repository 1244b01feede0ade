"""The JSON report, ``gqacheck/1``: keys are only ever added, and its schema lies beside this file."""

from __future__ import annotations

import json
from typing import Any

from gqacheck.geometry.facts import Geometry, Layer
from gqacheck.geometry.origins import PairingFit
from gqacheck.report.lineage_json import lineage_data
from gqacheck.report.runtime_json import metrics_data, number, runtime_data
from gqacheck.report.words import layers_words
from gqacheck.result import CheckpointReport, Report
from gqacheck.rules.rule import Finding, Quantity, Skipped

SCHEMA_NAME = "gqacheck/1"


def render_json(report: Report) -> str:
    """The report as one JSON document: ASCII only, ending in a newline; NaN and infinities are null beside a text."""
    return json.dumps(as_data(report), indent=1, allow_nan=False) + "\n"


def as_data(report: Report) -> dict[str, Any]:
    """The report as plain dicts and lists, in the order in which it is written."""
    return {
        "schema": SCHEMA_NAME,
        "version": report.version,
        "verdict": report.verdict.value,
        "exit_code": report.exit_code,
        "checkpoints": [checkpoint_json(c) for c in report.checkpoints],
        "notes": list(report.notes),
    }


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the document."""
    from importlib.resources import files

    text = (files("gqacheck.report") / "schema" / "gqacheck-1.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def checkpoint_json(report: CheckpointReport) -> dict[str, Any]:
    """The part of one checkpoint, as plain dicts and lists."""
    claims = {claim.name: claim for claim in report.claims}
    checkpoint, geometry = report.checkpoint, report.geometry
    return {
        "verdict": report.verdict.value,
        "exit_code": report.exit_code,
        "path": report.path,
        **_identity(report),
        "base": None if report.base is None else _base(report.base),
        "geometry": None if geometry is None else _geometry(geometry),
        "claims": {
            name: claims[name].state.value if name in claims else "not-checked"
            for name in ("shapes", "pairing", "runtime")
        },
        "claim_details": {name: {"reason": c.reason, "rules_run": c.rules_run} for name, c in claims.items()},
        "findings": [{**_finding(f), "known": f.fingerprint in report.known} for f in report.findings],
        "skipped": [_skipped(skip) for skip in report.skipped],
        "metrics": metrics_data(report.runtime),
        "lineage": None if report.lineage is None else lineage_data(report.lineage),
        "pairing_fit": None if report.pairing_fit is None else _pairing_fit(report.pairing_fit),
        "runtime": None if report.runtime is None else runtime_data(report.runtime),
        "error": report.error,
        "notes": list(report.notes),
        "ignored": list(checkpoint.ignored) if checkpoint else [],
        "not_checked": list(geometry.not_checked) if geometry else [],
        "unwrapped": list(checkpoint.unwrapped) if checkpoint else [],
    }


def _identity(report: CheckpointReport) -> dict[str, Any]:
    checkpoint, geometry = report.checkpoint, report.geometry
    return {
        "format": checkpoint.format if checkpoint else None,
        "family": geometry.family.name if geometry else None,
        "family_source": geometry.family_source if geometry else None,
        "family_known": not geometry.family.generic if geometry else None,
        "quantization": checkpoint.quantization if checkpoint else None,
        "parameters": checkpoint.parameters if checkpoint else None,
        "file_bytes": checkpoint.file_bytes if checkpoint else None,
        "bytes_read": checkpoint.bytes_read if checkpoint else None,
    }


def _base(base: CheckpointReport) -> dict[str, Any]:
    geometry = None if base.geometry is None else _geometry(base.geometry)
    return {"path": base.path, **_identity(base), "geometry": geometry}


def _geometry(geometry: Geometry) -> dict[str, Any]:
    head_dims = [layer.attention.head_dim for layer in geometry.layers if layer.attention.head_dim]
    values = {measured.value for measured in head_dims}
    return {
        "n_layers": geometry.n_layers,
        "hidden_size": geometry.hidden_size.value if geometry.hidden_size else None,
        "vocab_size": geometry.embedding.rows if geometry.embedding else None,
        "head_dim": head_dims[0].value if len(values) == 1 else None,
        "head_dim_source": head_dims[0].source if head_dims else None,
        "uniform": geometry.uniform,
        "prefix": geometry.prefix,
        "layers": [_layer(layer) for layer in geometry.layers],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    a, m = layer.attention, layer.mlp
    return {
        "index": layer.index,
        "n_q_heads": a.n_q_heads,
        "n_kv_heads": a.n_kv_heads,
        "head_dim": a.head_dim.value if a.head_dim else None,
        "intermediate_size": m.intermediate_size,
        "attention": a.kind,
        "mlp": m.kind,
        "n_experts": m.n_experts_stored,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    where = layers_words(finding.layers)
    return {
        "code": finding.code,
        "slug": finding.slug,
        "severity": finding.severity.value,
        "layers": list(finding.layers),
        "fingerprint": finding.fingerprint,
        "tensors": list(finding.tensors),
        "message": f"{where}: {finding.message}" if where else finding.message,
        "expected": _quantity(finding.expected),
        "actual": _quantity(finding.actual),
        "source": finding.source,
        "consequence": finding.consequence,
        "fix": finding.fix,
        "cause": finding.cause,
    }


def _quantity(quantity: Quantity | None) -> dict[str, Any] | None:
    return None if quantity is None else {**number("value", quantity.value), "unit": quantity.unit}


def _skipped(skip: Skipped) -> dict[str, str]:
    return {"code": skip.code, "needs": skip.needs, "reason": skip.reason}


def _pairing_fit(fit: PairingFit) -> dict[str, Any]:
    return {
        "verdict": fit.verdict,
        "reason": fit.reason,
        "needed_fit": round(fit.needed_fit, 3),
        "judged": fit.judged,
        "at_home": fit.at_home,
        "strays": [
            {
                "layer": stray.layer,
                "query_head": stray.query_head,
                "reads": stray.reads,
                "found": stray.found,
                "fit_read": round(stray.fit_read, 3),
                "fit_found": round(stray.fit_found, 3),
            }
            for stray in fit.strays
        ],
        "layers": list(fit.layers),
        "left_out": list(fit.left_out),
        "bytes_read": fit.bytes_read,
    }
