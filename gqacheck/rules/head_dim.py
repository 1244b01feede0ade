"""GQA111: is it certain how many rows one head has?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Attention, Claim, Layer, Measured, Subject
from gqacheck.rules.attention_widths import norms_doubt_head_dim
from gqacheck.rules.forward import size_error
from gqacheck.rules.heads import full_layers, listed
from gqacheck.rules.rule import Quantity, Severity, Violation

_INFERRED = ("inferred", "guessed", "the ")
_NORM = " width"
_ROTARY = "rotary_emb.inv_freq length"
_MODULE = "module attribute head_dim"


def head_dim_ambiguous(subject: Subject) -> Iterator[Violation]:
    """head_dim is not said anywhere, or the sources that say it disagree.

    What it checks
        What --head-dim, the module attribute, the config, the width of per-head norms and the rotary buffer say of
        head_dim. Inferred values (hidden_size // num_attention_heads and the like) are heard only where nothing
        states it; a config without head_dim that implies a wrong one is GQA407's business.

    Why it matters
        Every head count is rows divided by head_dim. 96 rows are 12 heads of 8 or 6 heads of 16, and either way no
        shape tells which.

    What you would see
        An error when the disagreeing number is the one that runs: `The size of tensor a (6) must match the size of
        tensor b (8) at non-singleton dimension 3` where the norm or the rotary embedding meets the heads. Else
        a warning, and head counts to take with care.

    Fix
        Give --head-dim N, or --config with the parent's config.json; set head_dim right on the module or in the
        config.

    Known misses
        Sources that agree on a wrong number. Rotary embeddings over a part of the head, where the config does not
        say how large a part.

    Source
        Attention classes of transformers 4.33 to 5.23; texts measured on 5.23.
    """
    for layer, attention in full_layers(subject):
        if attention.head_dim is None:
            yield from _unknown(layer, attention)
            continue
        heard = _heard(attention, attention.head_dim)
        if any(claim.value != heard[0].value for claim in heard):
            yield _dispute(subject, layer, attention, heard)


def _unknown(layer: Layer, attention: Attention) -> Iterator[Violation]:
    found = (attention.fused,) if attention.fused is not None else (attention.q, attention.k)
    stored = [projection for projection in found if projection is not None]
    if not stored:
        return
    rows = " and ".join(f"{projection.name} has {projection.rows} rows" for projection in stored)
    yield Violation(
        message=f"{rows}, and nothing says how many of them are one head",
        layer=layer.index,
        tensors=tuple(dict.fromkeys(projection.tensor for projection in stored)),
        source="tensor shapes",
        consequence="heads cannot be counted, so the rules that compare head counts did not judge this layer",
        fix="give --head-dim N, or --config with the config.json of this model",
        severity=Severity.WARNING,
    )


def _heard(attention: Attention, head_dim: Measured) -> tuple[Claim, ...]:
    """The claims that count, believed one first: stated and measured ones, or inferred ones if there are no others."""
    claims = head_dim.claims or (Claim(head_dim.value, head_dim.source),)
    firm = [claim for claim in claims if not claim.source.startswith(_INFERRED)]
    if len({claim.value for claim in firm}) > 1 and not norms_doubt_head_dim(attention):
        firm = [claim for claim in firm if not claim.source.endswith(_NORM)] or firm
    return tuple(firm or claims)


def _dispute(subject: Subject, layer: Layer, attention: Attention, heard: Sequence[Claim]) -> Violation:
    believed = heard[0]
    others: dict[int, list[str]] = {}
    for claim in heard:
        if claim.value != believed.value:
            others.setdefault(claim.value, []).append(_source(claim))
    runs, against = _what_runs(subject, heard)
    severity, consequence = Severity.WARNING, "head counts in this report go by the first of these numbers"
    if runs is not None and against is not None:
        severity = Severity.ERROR
        consequence = _error(subject, attention, runs, against)
    elif runs is not None and runs.value != believed.value:
        consequence = f"the model itself goes by {runs.source}; head counts in this report go by {believed.source}"
    contradicted = ", and ".join(
        f"{listed(sources)} {'say' if len(sources) > 1 else 'says'} {value}" for value, sources in others.items()
    )
    return Violation(
        message=f"{_source(believed)} says head_dim is {believed.value}, but {contradicted}",
        layer=layer.index,
        tensors=tuple(dict.fromkeys(p.tensor for p in (attention.q, attention.k) if p is not None)),
        expected=Quantity(next(iter(others)), "rows per head"),
        actual=Quantity(believed.value, "rows per head"),
        source=believed.source,
        consequence=consequence,
        fix="set head_dim to the size that the model was trained with wherever it is written, or give --head-dim N",
        severity=severity,
    )


def _source(claim: Claim) -> str:
    return claim.source.removeprefix("inferred: ").removeprefix("guessed: ")


def _what_runs(subject: Subject, heard: Sequence[Claim]) -> tuple[Claim | None, Claim | None]:
    """The claim that the model goes by, and the stored width that it runs into, None when they fit together.

    A module runs by its attribute, a folder by its config; a norm's width stops both, the pickled rotary buffer only
    the module, since loading a folder makes a new one.
    """
    in_module = subject.container is Container.MODULE
    runs = next((c for c in heard if (c.source == _MODULE if in_module else _in_config(c))), None)
    if runs is None:
        return None, None
    walls = [c for c in heard if c.source.endswith(_NORM) or (in_module and c.source == _ROTARY)]
    return runs, next((claim for claim in walls if claim.value != runs.value), None)


def _in_config(claim: Claim) -> bool:
    return claim.source.endswith(" head_dim") and claim.source != _MODULE


def _error(subject: Subject, attention: Attention, runs: Claim, against: Claim) -> str:
    if subject.container is not Container.MODULE:
        return (
            f"the class is built with heads of {runs.value}, so loading reports a size mismatch: "
            f"ckpt: torch.Size([{against.value}]) vs model:torch.Size([{runs.value}])"
        )
    a, b = (runs.value, against.value) if against.source == _ROTARY else (against.value, runs.value)
    rows = next((p.rows for p in (attention.q, attention.k) if p is not None and p.rows % runs.value), None)
    if rows is not None:
        return f"the forward pass raises a view error: {rows} rows are no whole heads of {runs.value}"
    return f"the forward pass raises `{size_error(a, b, 3)}`"
