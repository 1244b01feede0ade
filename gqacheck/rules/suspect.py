"""GQA504: signs of a wrong pairing in the weights alone, where there is no parent to prove it."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.geometry.facts import Projection, Subject
from gqacheck.geometry.origins import PairingFit, Stray
from gqacheck.rules.heads import counted, needs_attention
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.text import printable


def needs_fit(subject: Subject) -> tuple[str, str] | None:
    """Weights that were read (--values) and could be judged, and no parent whose weights have answered already."""
    if subject.lineage is not None and subject.lineage.compared:
        return "no-base", "the parent's weights were compared, which settles what this rule could only suspect"
    fit = subject.pairing_fit
    if fit is None:
        return "values", "the weights were not read (--values)"
    if fit.verdict not in ("not-judged", "failed"):
        return None
    needs = "weights" if fit.verdict == "failed" else "heads"
    return needs_attention(subject) or (needs, printable(fit.reason, 300) or "no layer could be judged")


def pairing_suspect(subject: Subject) -> Iterator[Violation]:
    """Without a parent: query heads fit another v head of their layer than the one they read, far beyond chance.

    What it checks
        With --values and without --base. Training gives a query head's columns of o_proj and the v head that it reads
        the same correlations between channels. Compared are the correlations of every query head with those of every
        v head of its layer. Heads must point at two or more v heads that they do not read, clearly better than at
        their own, and more than in any of 299 copies in which every v head's channels are shuffled.

    Why it matters
        Query heads that were kept without their own KV heads leave every shape right and the model broken. Where the
        parent is not at hand, this is the only sign of it that needs no run.

    What you would see
        Nothing raises. If the sign is right, text was garbage before any further training; how well the file
        runs after it, this does not say.

    Fix
        Give the parent with --base PARENT: its weights prove or clear it. `gqacheck repair` then mends it.

    Known misses
        Silence says nothing. The tie fades in long training, and o_proj rewritten by least squares has lost it. A head
        whose own v head is gone points nowhere; wrong k heads and query rows are not looked at. Not judged: packed
        weights, latent attention, unknown families, layers without a v_proj of their own, one KV head per layer.
        docs/pairing-without-a-parent.md has the figures: no false alarm on 7,443 correct files.

    Source
        Own measurements on small trained models, written down in docs/pairing-without-a-parent.md.
    """
    fit = subject.pairing_fit
    if fit is None or fit.verdict != "suspect":
        return
    layers = sorted({stray.layer for stray in fit.strays})
    attentions = {layer.index: layer.attention for layer in subject.geometry.layers}
    for layer in layers:
        attention = attentions.get(layer)
        yield Violation(
            message=_message(fit, len(layers)),
            layer=layer,
            tensors=_stored(attention.o, attention.v) if attention is not None else (),
            expected=Quantity(0, "query heads"),
            actual=Quantity(len(fit.strays), "query heads"),
            source="weights of the checkpoint",
            consequence="if the sign is right, query heads were kept without their KV heads: nothing raises, and text "
            "is garbage unless later training has made up for it; heads whose own KV head is gone are not counted here",
            fix="give the parent with --base PARENT, whose weights prove or clear it",
        )


def _message(fit: PairingFit, n_layers: int) -> str:
    clearest = max(fit.strays, key=lambda stray: stray.fit_found - stray.fit_read)
    verb = "fits" if len(fit.strays) == 1 else "fit"
    return (
        f"{len(fit.strays)} of {counted(fit.judged, 'query head')} ({n_layers} of {counted(len(fit.layers), 'layer')}) "
        f"{verb} another KV head of their layer than the one they read, far beyond chance; a statistical sign, not a "
        f"proof: {_example(clearest)}"
    )


def _example(stray: Stray) -> str:
    return (
        f"in layer {stray.layer} query head {stray.query_head} reads KV head {stray.reads}, and its o_proj columns go "
        f"with the v rows of KV head {stray.found} (fit {stray.fit_found:.1f} against {stray.fit_read:.1f}, where "
        "unrelated heads reach about 1)"
    )


def _stored(*projections: Projection | None) -> tuple[str, ...]:
    return tuple(projection.tensor for projection in projections if projection is not None)


def fit_words(fit: PairingFit | None) -> str:
    """What is added to the reason for which the pairing claim is not checked, "" when nothing was asked."""
    if fit is None or fit.verdict in ("not-judged", "failed"):
        return ""
    heads = f"{fit.at_home} of {counted(fit.judged, 'query head')} visibly fit the KV head they read"
    if fit.verdict == "suspect":
        words = "; the weights show signs that it is wrong (GQA504)"
    elif fit.verdict == "no-sign":
        words = f"; the weights show no sign that it is wrong ({heads}, none another), which proves nothing"
    else:
        words = f"; the weights alone do not tell ({heads})"
    if fit.left_out:
        words += f"; {counted(len(fit.left_out), 'layer')} left out: {printable(fit.left_out[0], 200)}"
    return words


VALUE_RULES: tuple[Rule, ...] = (
    Rule("GQA504", "pairing-suspect", Severity.WARNING, "pairing", pairing_suspect, needs_fit),
)
