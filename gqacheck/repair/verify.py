"""What was written, checked before it gets its name: by the full check, and its logits against a reference."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Lineage
from gqacheck.repair.apply import apply_plan
from gqacheck.repair.blocks import Side
from gqacheck.repair.expand import CannotExpand, expand_plans
from gqacheck.repair.facts import Reference
from gqacheck.result import CheckpointReport, ClaimState
from gqacheck.rules.origins import undecided
from gqacheck.rules.rule import Severity

if TYPE_CHECKING:
    import torch

ALLOWED = 1e-3
"""Largest difference of two logits, as a share of their standard deviation, that float32 rounding may make; measured on
correct cuts: 3e-5. One query head beside a KV head that is not its own makes 0.1 and more."""
_SEQUENCES, _TOKENS = 2, 48
_BYTES_EACH = 4
_ROOM = 1.3
"""Memory that a rebuild takes, as a multiple of its float32 weights."""

Progress = Callable[[str, int, int], None]


def check_written(report: CheckpointReport, before: Lineage | None) -> tuple[str, ...]:
    """Why the written checkpoint is not sound, one sentence each; () when it is.

    before: what was known of the source, None without a parent. The pairing claim must pass, but for layers that could
    not be told before either (trained too far, another layer's rewritten part): these are as they were.
    """
    if report.error is not None:
        return (f"what was written could not be checked: {report.error}",)
    wrong = [
        f"what was written still has {finding.code}: {finding.message}"
        for finding in report.findings
        if finding.severity is Severity.ERROR
    ]
    if before is not None and not wrong:
        claim = next(claim for claim in report.claims if claim.name == "pairing")
        passed = claim.state is ClaimState.PASS
        if not passed and (claim.state is not ClaimState.NOT_CHECKED or not _was_undecided(report, before)):
            wrong.append(f"the pairing of what was written is {claim.state.value}: {claim.reason}")
    return tuple(wrong)


def _was_undecided(report: CheckpointReport, before: Lineage) -> bool:
    """Whether there are layers that cannot be told, and none of them could be told before."""
    after = report.lineage
    if after is None or len(after.layers) != len(before.layers):
        return False
    open_now = [place for place, layer in enumerate(after.layers) if undecided(layer)]
    return bool(open_now) and all(undecided(before.layers[place]) for place in open_now)


def compare_with_reference(after: CheckpointReport, work: str, *, progress: Progress | None = None) -> Reference:
    """The logits of the written checkpoint against those of its parent with everything else masked.

    Where the tensors are not the parent's bit by bit, against the checkpoint's own blocks in the parent's places. What
    cannot be run is a ``Reference`` that says why. ``work``: a folder to write in.
    """
    base, lineage = after.base, after.lineage
    if base is None or base.checkpoint is None or base.geometry is None or lineage is None:
        return Reference(False, "there is no parent to compare with")
    if after.checkpoint is None or after.geometry is None:
        return Reference(False, "what was written could not be read")
    from gqacheck.runtime.configure import CannotRun, one_line

    child, parent = Side(after.checkpoint, after.geometry), Side(base.checkpoint, base.geometry)
    need = int(max(side.checkpoint.parameters for side in (child, parent)) * _BYTES_EACH * _ROOM)
    free = _free_memory()
    if free is not None and need > free:
        return Reference(
            False, f"running it takes about {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        )
    try:
        return _compare(after, child, parent, os.path.join(work, "reference"), progress)
    except CannotExpand as error:
        return Reference(False, str(error))
    except CannotRun as error:
        return Reference(error.supported, str(error), float("inf") if error.supported else None, ALLOWED)
    except (GqacheckError, MemoryError) as error:
        return Reference(False, str(error) or "there is not enough memory to run it")
    except RuntimeError as error:  # what a forward pass raises
        return Reference(True, f"the forward pass raises {one_line(error)}", float("inf"), ALLOWED)


def _compare(after: CheckpointReport, child: Side, parent: Side, patch: str, progress: Progress | None) -> Reference:
    from gqacheck.runtime.kept import kept_of
    from gqacheck.runtime.masked import mask_parent
    from gqacheck.runtime.quiet import quiet_and_offline

    lineage = after.lineage
    assert lineage is not None
    rows = min(g.embedding.rows for g in (child.geometry, parent.geometry) if g.embedding is not None)
    with quiet_and_offline():
        logits, std = _run(child.checkpoint, child.geometry, rows, None)
        if progress is not None:
            progress("reference", 1, 3)
        difference = None
        if lineage.method == "exact":
            kept = kept_of(lineage, child.geometry, parent.geometry)
            if not kept.notes:
                masked, std = _run(
                    parent.checkpoint,
                    parent.geometry,
                    rows,
                    lambda model: mask_parent(model, kept.layers, hidden=kept.hidden),
                )
                difference = _apart(logits, masked, std)
        if progress is not None:
            progress("reference", 2, 3)
        if difference is not None and difference <= ALLOWED:
            return Reference(True, "", difference, ALLOWED, _SEQUENCES * _TOKENS)
        plans = expand_plans(lineage, child.geometry, parent.geometry)
        spread = apply_plan(child, parent, plans, patch)
        head_dim = next(
            (x.attention.head_dim.value for x in child.geometry.layers if x.attention.head_dim is not None), None
        )
        wide = measure(spread, family=None if child.geometry.family.generic else child.geometry.family.name,
                       head_dim=head_dim)  # fmt: skip
        expanded, std = _run(spread, wide, rows, None)
        if progress is not None:
            progress("reference", 3, 3)
        return Reference(True, "", _apart(logits, expanded, std), ALLOWED, _SEQUENCES * _TOKENS, expanded=True)


def _run(
    checkpoint: Checkpoint, geometry: Geometry, rows: int, change: Callable[[Any], None] | None
) -> tuple[torch.Tensor, float]:
    """Logits of fixed token ids in float32, and their standard deviation; the model is gone afterwards."""
    import torch

    from gqacheck.runtime.rebuild import rebuild

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ids = torch.randint(0, rows, (_SEQUENCES, _TOKENS))
        model = rebuild(checkpoint, geometry, dtype=torch.float32).model
        if change is not None:
            change(model)
        logits = model(input_ids=ids, use_cache=False).logits[..., :rows].float()
    del model
    gc.collect()
    return logits, float(logits.std())


def _apart(one: torch.Tensor, other: torch.Tensor, std: float) -> float:
    """The largest difference as a share of ``std``; infinite when one of the two is not finite."""
    if not bool(one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    return float((one - other).abs().max()) / max(std, 1e-30)


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for row in stream:
                if row.startswith("MemAvailable:"):
                    return int(row.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None
