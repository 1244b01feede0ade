"""What ``PrunerContract`` holds a pruned model to: each function returns when it does, and else says where it does not.

Every complaint names the model and the request in a line each, and where gqacheck's own report tells more, that report
follows. So what a failing test shows is which layer and which heads, not where in here the comparison stands.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gqacheck.api import check_model
from gqacheck.errors import GqacheckError, UsageError
from gqacheck.result import CheckpointReport, ClaimState
from gqacheck.rules.rule import Finding
from gqacheck.testing.complaint import one_line, violation
from gqacheck.testing.models import logits_apart, logits_of, token_ids
from gqacheck.text import printable

if TYPE_CHECKING:
    from gqacheck.testing.strategies import PruningCase

WITHIN: Mapping[str, float] = {"float64": 1e-10, "float32": 1e-3}
"""How far logits may be from the masked parent's, in their standard deviations, by dtype.

Sound cuts reach 2e-14 and 3e-5; heads beside the wrong KV head are 0.1 and more away.
"""
WITHIN_NORMS: Mapping[str, float] = {"float64": 1e-5, "float32": 1e-3}
"""The same where a norm counts what was cut: OLMo-2's over all heads, and every norm where the hidden size was cut.

Norms compute in float32 whatever the weights are, and the masked parent's sum in another order over a weight that is
scaled, hence rounded, once more."""
HARMLESS = frozenset(("GQA011", "GQA105", "GQA401", "GQA405", "GQA406", "GQA407", "GQA607"))
"""What is said of sound cuts too when it is no error: the ratio differs by layer, layers differ in size, the stock
config class takes no such sizes."""
STEP = 1e-2


def hold_kind(child: Any, names: Collection[str], case: PruningCase, dtype: str) -> None:
    """What came back is a model of transformers, in the dtype of the given one, with parameters that go by its names.

    names: the parameters of the given model, before it was pruned.
    """
    __tracebackhide__ = True
    from torch import nn
    from transformers import PreTrainedModel

    kind = type(child).__name__
    if not isinstance(child, nn.Module):
        raise violation(f"prune() returned {kind} and not a model", case, dtype=dtype)
    now = dict(child.named_parameters())
    what = "whose parameters have other names than the given model's" if now.keys().isdisjoint(names) else ""
    if not what and not isinstance(child, PreTrainedModel):
        what = "which is no model of transformers"
    if what:
        raise violation(f"prune() returned a {kind}, {what}; return the transformers model itself", case, dtype=dtype)
    for name, parameter in now.items():
        returned = str(parameter.dtype).removeprefix("torch.")
        if name in names and returned != dtype:
            told = f"{printable(name)} was given as {dtype} and returned as {returned}: prune() must keep the dtype"
            raise violation(told, case, dtype=dtype)


def run(model: Any, case: PruningCase, dtype: str = "float32") -> Any:
    """Logits of a pruned model, which must be finite."""
    __tracebackhide__ = True
    try:
        logits = logits_of(model)
    except Exception as error:  # whatever a forward pass raises
        raise violation(
            f"the pruned model does not run: {one_line(error)}", case, check_model(model), dtype
        ) from error.with_traceback(None)
    if not bool(logits.isfinite().all()):
        raise violation("the pruned model's logits are not all finite", case, dtype=dtype)
    return logits


def hold_masked(child: Any, case: PruningCase, dtype: str) -> None:
    """The logits are those of the parent with the parts masked that lineage does not find in ``child`` any more."""
    __tracebackhide__ = True
    from gqacheck.runtime.kept import kept_of
    from gqacheck.runtime.masked import mask_parent

    reference = case.config.build(dtype)
    report = check_model(child, base=reference)
    ours = run(child, case, dtype)
    parent = report.base.geometry if report.base is not None else None
    if report.lineage is None or not report.lineage.compared or report.geometry is None or parent is None:
        raise violation("its weights cannot be told to be the given model's", case, report, dtype)
    kept = kept_of(report.lineage, report.geometry, parent)
    mask_parent(reference, kept.layers, hidden=kept.hidden)
    attend_alike(reference, child)
    difference = logits_apart(ours, logits_of(reference))
    by_norms = case.config.family == "olmo2" or kept.hidden is not None
    allowed = (WITHIN_NORMS if by_norms else WITHIN)[dtype]
    if not difference <= allowed:
        raise violation(
            "the pruned model is not the given model with the missing parts masked: its logits are "
            f"{difference:.2g} standard deviations away where {dtype} allows {allowed:.0e}{_hint(report, kept.notes)}",
            case,
            report,
            dtype,
        )


def _hint(report: CheckpointReport, notes: Sequence[str]) -> str:
    """Where it is not the pairing: what of the weights is not the parent's, and what to declare if that is meant."""
    if any(claim.name == "pairing" and claim.state is ClaimState.FAIL for claim in report.claims):
        return ""
    return f" ({'; '.join((*notes, 'where weights are meant to be rewritten, declare rewrites_weights = True'))})"


def attend_alike(model: Any, other: Any) -> None:
    """Gives ``model`` the attention code of ``other``: a pruner may switch it, and eager rounds otherwise than sdpa."""
    wanted = other.config._attn_implementation
    if model.config._attn_implementation != wanted:
        model.set_attn_implementation(wanted)


def hold_pairing(child: Any, case: PruningCase) -> None:
    """The parent's weights show every query head beside its own KV head, and q with o, k with v, gate with up, down."""
    __tracebackhide__ = True
    report = check_model(child, base=case.config.build("float32"))
    claim = next((claim for claim in report.claims if claim.name == "pairing"), None)
    if claim is None or claim.state is ClaimState.FAIL:
        raise violation("the pruned model's heads or channels are not paired as the given model's were", case, report)
    if claim.state is not ClaimState.PASS:
        raise violation(f"whether its heads are paired cannot be told: {claim.reason}", case, report)


def hold_in_step(child: Any, case: PruningCase, tolerated: Collection[str]) -> None:
    """No static rule complains: shapes, module attributes and config say the same."""
    __tracebackhide__ = True
    report = check_model(child)
    if report.error is not None:
        raise violation(f"the pruned model cannot be measured: {report.error}", case)
    found = [each for each in report.findings if each.code not in tolerated and not _as_asked(each, case)]
    wrong = [each.code for each in found if str(each.severity) == "error" or each.code not in HARMLESS]
    if wrong:
        codes = ", ".join(sorted(set(wrong)))
        raise violation(f"shapes, module attributes and config of the pruned model disagree ({codes})", case, report)
    run(child, case)


def _as_asked(finding: Finding, case: PruningCase) -> bool:
    """Whether it only says that the layers that lost query heads have fewer of them, which no config of theirs says."""
    chosen = case.request.layer_range(case.config.n_layers)
    return finding.code == "GQA105" and _cuts_queries_apart(case) and set(finding.layers) <= set(chosen)


def _cuts_queries_apart(case: PruningCase) -> bool:
    """Whether the request is about the query heads of some layers: then the config has no one number for all layers."""
    return "queries" in case.request.parts and case.request.layers is not None


def hold_training(child: Any, parent: Any, case: PruningCase) -> None:
    """One step of SGD reaches every parameter that could be trained before, and leaves finite numbers."""
    __tracebackhide__ = True
    import torch

    trainable = {name for name, parameter in parent.named_parameters() if parameter.requires_grad}
    frozen = [n for n, parameter in child.named_parameters() if n in trainable and not parameter.requires_grad]
    if frozen:
        raise violation(f"{len(frozen)} parameters do not require a gradient any more, the first is {frozen[0]}", case)
    child.zero_grad()
    ids = token_ids()
    try:
        with torch.enable_grad():
            child(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    except Exception as error:  # whatever a forward or backward pass raises
        raise violation(
            f"the pruned model cannot be trained: {one_line(error)}", case, check_model(child)
        ) from error.with_traceback(None)
    for name, parameter in child.named_parameters():
        if name in trainable and parameter.grad is None:
            raise violation(f"no gradient reaches {name}", case)
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise violation(f"the gradient of {name} is not finite", case)
    before = copy.deepcopy(child.state_dict())
    torch.optim.SGD(child.parameters(), lr=STEP).step()
    if all(torch.equal(values, before[name]) for name, values in child.state_dict().items()):
        raise violation("a training step changes no parameter", case)
    run(child, case)


def hold_round_trip(child: Any, case: PruningCase, folder: str) -> None:
    """Saved with ``torch.save`` and exported as a folder, it loads as what it was, logits equal to the bit."""
    __tracebackhide__ = True
    import torch

    from gqacheck.export.live import export_model
    from gqacheck.runtime.load import load_model

    ours = run(child, case)
    for way, name in (("saved with torch.save", "model.bin"), ("exported with gqacheck.export_model", "folder")):
        place = f"{folder}/{name}"
        try:
            if name == "folder":
                export_model(child, place, force=_cuts_queries_apart(case))
            else:
                torch.save({"model": child, "tokenizer": None}, place)
            loaded, _ = load_model(place)
        except GqacheckError as error:
            raise violation(f"{way} it does not come back: {error}", case) from None
        except Exception as error:  # a hook or a closure that cannot be pickled, among others
            raise violation(f"{way} it does not come back: {one_line(error)}", case) from error.with_traceback(None)
        attend_alike(loaded, child)
        difference = logits_apart(logits_of(loaded), ours)
        if difference:
            raise violation(
                f"{way} it comes back as another model: logits differ by {difference:.2g} standard deviations", case
            )


def hold_ways(child: Any, case: PruningCase) -> None:
    """Eager and sdpa attention, a KV cache, padding: each gives the same logits."""
    __tracebackhide__ = True
    try:
        report = check_model(child, consistency=True)
    except UsageError as error:  # of a module that is no language model
        raise violation(f"the pruned model could not be run in several ways: {error}", case) from None
    if any(each.code[:4] == "GQA7" and str(each.severity) == "error" for each in report.findings):
        raise violation("it depends on the way it is run what the pruned model computes", case, report)
    if report.runtime is None or report.runtime.failure is not None or report.runtime.consistency is None:
        why = "it does not run" if report.runtime is None else report.runtime.failure or report.runtime.problem
        raise violation(f"the pruned model could not be run in several ways: {why}", case, report)
