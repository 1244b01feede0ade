"""What one report says of one part of a checkpoint: failed, could not be checked, or nothing wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gqacheck.plugin.plan import Part, Plan
from gqacheck.text import printable

CLAIMS = {"GQA5": "pairing", "GQA6": "pairing", "GQA7": "runtime"}
"""The claim that a group of rules stands behind, where it is not ``shapes``."""
DECIDING = frozenset(("head-dim", "dense-weights", "repair"))
"""What a skipped rule needed when the others of its group prove nothing without it. Any other need is a part that this
file does not have (biases, shards, a config), or is judged layer by layer."""
LONGEST = 2000
"""Characters of one sentence; names in it come from the checkpoint and are escaped."""
SHOWN = 20
"""Findings of one item that are printed; the rest is counted."""


def failure(plan: Plan, part: Part, data: dict[str, Any]) -> str:
    """Why this part fails, "" when it does not."""
    if data["geometry"] is None or (part.group == "GQA0" and _could_not(data)):
        return f"could not check: {printable(data['error'] or '; '.join(data['notes']), LONGEST)}"
    if part.group == "GQA7" and _could_not(data) and data["error"]:
        return f"could not check: {printable(data['error'], LONGEST)}"
    layers = max((layer["index"] + 1 for layer in data["geometry"]["layers"]), default=0)
    if plan.layers is not None and layers != plan.layers:
        return (
            f"could not check: there are {layers} layers now and were {plan.layers} when the tests were collected; "
            "run pytest again"
        )
    lines = [_words(finding) for finding in data["findings"] if _fails(finding) and _is_in(plan, part, finding)]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n\n".join([*lines[:SHOWN], *more])


def not_checked(plan: Plan, part: Part, data: dict[str, Any]) -> str:
    """Why nothing found proves nothing in this part, "" when it is a pass."""
    reason = next(_whole_doubts(plan, data) if part.group == "GQA0" else _doubts(part, data), "")
    return reason and f"not checked: {printable(reason, LONGEST)}"


def _is_in(plan: Plan, part: Part, finding: dict[str, Any]) -> bool:
    """Whether a finding belongs to a part. What belongs to none, of a file that changed since, belongs to GQA0."""
    if part.group == "GQA0" and not any(_owns(other, finding) for other in plan.parts):
        return True
    return _owns(part, finding)


def _owns(part: Part, finding: dict[str, Any]) -> bool:
    if not finding["code"].startswith(part.group):
        return False
    if part.first is None:
        return True
    return any(map(part.covers, finding["layers"])) or (not finding["layers"] and part.first == 0)


def _fails(finding: dict[str, Any]) -> bool:
    return bool(finding["fails"]) and not finding["known"]


def _could_not(data: dict[str, Any]) -> bool:
    return bool(data["exit_code"] == 3)


def _doubts(part: Part, data: dict[str, Any]) -> Iterator[str]:
    """Reasons why the absence of findings in one part is no pass: of its layers, its rules, the claim behind it."""
    claim = CLAIMS.get(part.group, "shapes")
    if part.group == "GQA6":
        yield from _undecided(part, data)
    if data["claims"][claim] == "not-checked" and not (part.group == "GQA6" and data["undecided"]):
        yield data["claim_details"][claim]["reason"]
    if not data["family_known"] and claim != "runtime":
        yield "the model family is not known: rules went by tensor names, and nothing was called an error"
    if part.group == "GQA1":
        yield from _unknown_heads(part, data)
    yield from _skipped_rules(part.group, data)


def _whole_doubts(plan: Plan, data: dict[str, Any]) -> Iterator[str]:
    """The same of the file; it stands for everything where the header could not be read when tests were collected."""
    yield from _skipped_rules("GQA0", data)
    if plan.layers is None:
        given = plan.wanted.given
        runs = any(given.get(name) for name in ("ppl", "generate", "consistency", "all_runtime"))
        asked = {"shapes": True, "pairing": bool(given.get("base")), "runtime": runs}
        for claim, is_asked in asked.items():
            if is_asked and data["claims"][claim] == "not-checked":
                yield data["claim_details"][claim]["reason"]


def _undecided(part: Part, data: dict[str, Any]) -> Iterator[str]:
    found = {layer: why for layer, why in data["undecided"].items() if part.covers(int(layer))}
    if found:
        covered = sum(part.covers(layer["index"]) for layer in data["geometry"]["layers"])
        layer, why = next(iter(found.items()))
        yield f"{covered - len(found)} of {covered} layers compared: layer {layer}: {why}"


def _unknown_heads(part: Part, data: dict[str, Any]) -> Iterator[str]:
    for layer in data["geometry"]["layers"]:
        if part.covers(layer["index"]) and layer["attention"] == "full" and layer["head_dim"] is None:
            yield f"layer {layer['index']}: head_dim is not known: give a config, or head-dim in the settings"
        if part.covers(layer["index"]) and layer["attention"] == "mla":
            yield f"layer {layer['index']}: latent attention (MLA) has no KV heads to count"


def _skipped_rules(group: str, data: dict[str, Any]) -> Iterator[str]:
    skipped = [skip for skip in data["skipped"] if skip["code"].startswith(group)]
    for skip in skipped:
        if skip["needs"] in DECIDING or (skip["needs"] == "selection" and "--select" in skip["reason"]):
            yield f"{skip['code']}: {skip['reason']}"
    if skipped and data["rules"].get(group, 0) <= len(skipped):
        yield skipped[0]["reason"]


def _words(finding: dict[str, Any]) -> str:
    parts = [
        f"{finding['severity'].upper()} {finding['code']} {finding['slug']}",
        f"  {printable(finding['message'], LONGEST)}",
    ]
    for label, key in (("in", "tensors"), ("cause", "cause"), ("effect", "consequence"), ("fix", "fix")):
        value = finding[key]
        if key == "tensors" and value:
            value = value[0] + (f" and {len(value) - 1} more" if len(value) > 1 else "")
        if value:
            parts.append(f"  {label:7} {printable(value, LONGEST)}")
    return "\n".join(parts)
