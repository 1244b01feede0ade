"""head_dim: every source that speaks of it, in order of trust, and what follows from the rows alone.

A wrong head_dim turns every head count into nonsense, so the number always carries its source, and where nothing
trustworthy speaks and the rows fit several values there is no number at all: rules then abstain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gqacheck.checkpoint import ModuleInfo, Plain
from gqacheck.geometry.config import LAYER_LISTS, config_layer_value, config_number
from gqacheck.geometry.facts import Claim, Geometry, Measured, Norm
from gqacheck.geometry.family import Family

LARGEST_HEAD_DIM = 1 << 16
USUAL = (128, 64, 96, 80, 256, 112, 160, 192, 120, 100, 72, 48, 32)
"""head_dims of published models, the commonest first; only used where nothing speaks."""

_FROM_ROWS = "inferred: q_proj and k_proj rows"
_NO_USUAL_SIZE = frozenset({"falcon", "phi3", "stablelm", "gpt_oss", "generic"})
_ONLY_COUNTS = frozenset({"falcon"})
"""Families whose config has no key for head_dim: whoever cuts heads can write down their counts and nothing else."""
_INFERRED = ("inferred", "guessed")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of q (halved where q carries a gate), k and v of one layer's full attention; None where not stored."""

    layer: int
    q: int | None
    k: int | None
    v: int | None

    @property
    def known(self) -> tuple[int, ...]:
        """The rows that are stored and not zero."""
        return tuple(rows for rows in (self.q, self.k, self.v) if rows)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What holds for the whole model, collected once.

    option: ``--head-dim``, or what option_source names. inv_freq: length of the rotary buffer.
    config, source: the text model's config.
    """

    family: Family
    config: Mapping[str, Plain]
    source: str
    rows: Sequence[Rows]
    option: int | None = None
    option_source: str = "--head-dim"
    inv_freq: int | None = None
    rotary_share: float = 1.0


def plausible(value: object) -> int | None:
    """``value`` when it can be a head_dim: a whole number from 1 to 65,536, no bool."""
    return value if type(value) is int and 0 < value <= LARGEST_HEAD_DIM else None


def model_claims(evidence: Evidence) -> tuple[list[Claim], list[Claim]]:
    """Claims that hold for every layer: (those above the norms' width, those below), in order of trust."""
    above: list[Claim] = []
    stated = plausible(config_number(evidence.config, "head_dim"))
    if stated is not None:
        above.append(Claim(stated, f"{evidence.source} head_dim"))
    listed = _listed(evidence.config)
    if listed is not None:
        above.insert(0, Claim(listed, f"{evidence.source} {LAYER_LISTS}.head_dim"))
    below: list[Claim] = []
    default = evidence.family.default_head_dim
    if not above and default is not None and evidence.config:
        below.append(Claim(default, f"the {evidence.family.name} default, head_dim is not in {evidence.source}"))
    elif not above:
        below += _inferred(evidence)
    return above, below


def believed(
    evidence: Evidence,
    above: Sequence[Claim],
    below: Sequence[Claim],
    module: ModuleInfo | None,
    norms: Sequence[Norm],
    rows: Rows,
) -> Measured | None:
    """head_dim of one layer: the most trusted claim with all the others, None when nothing says."""
    claims: list[Claim] = []
    if evidence.option is not None:
        claims.append(Claim(evidence.option, evidence.option_source))
    own = plausible(module.attributes.get("head_dim")) if module else None
    if own is not None:
        claims.append(Claim(own, "module attribute head_dim"))
    claims += above
    if evidence.family.qk_norm in ("per-head", "per-head-rows") or evidence.family.generic:
        claims += _norm_claims(norms, rows, evidence.family.generic)
    if evidence.inv_freq:
        claims += _rotary_claims(evidence, [claim.value for claim in claims or below])
    claims += [claim for claim in below if not claims or not claim.source.startswith(_FROM_ROWS)]
    if module and not claims:
        heads = plausible(module.attributes.get("num_heads"))
        if heads and rows.q and rows.q % heads == 0:
            claims.append(Claim(rows.q // heads, "inferred: q_proj rows / module attribute num_heads"))
    return Measured(claims[0].value, claims[0].source, tuple(claims)) if claims else None


def _norm_claims(norms: Sequence[Norm], rows: Rows, cautious: bool) -> list[Claim]:
    claims = []
    for norm in norms:
        width = plausible(norm.width)
        if width is None or (cautious and norm.width in (rows.q, rows.k)):
            continue
        claims.append(Claim(width, f"{norm.name} width"))
    return claims


def _rotary_claims(evidence: Evidence, said: Sequence[int]) -> list[Claim]:
    """The rotary buffer holds one number per rotated pair; with partial rotation several head_dims fit its length."""
    length, share = evidence.inv_freq or 0, evidence.rotary_share
    whole = evidence.family.partial_rotary == 1  # most of these classes do not read a share that the config states
    for value in said:
        if (int(value * share) + 1) // 2 == length or (whole and (value + 1) // 2 == length):
            return [Claim(value, "rotary_emb.inv_freq length")]
    computed = plausible(round(2 * length / share))
    return [] if computed is None else [Claim(computed, "rotary_emb.inv_freq length")]


def _inferred(evidence: Evidence) -> list[Claim]:
    """Nothing states head_dim: weigh what the config implies against what the rows allow."""
    hidden, heads = (config_number(evidence.config, key) for key in ("hidden_size", "num_attention_heads"))
    if not hidden or not heads or hidden < 0 or heads < 0:
        return _guessed(evidence)
    implied = plausible(hidden // heads)
    by_rows, votes = _by_rows(evidence)
    claims = []
    if implied is not None:
        claims.append(Claim(implied, f"inferred: hidden_size // num_attention_heads of {evidence.source}"))
    if by_rows is None or by_rows == implied:
        return claims
    fits = 0 if implied is None or hidden % heads else _layers_that_fit(evidence, implied)
    other = Claim(by_rows, f"{_FROM_ROWS} / head counts of {evidence.source}")
    by_counts = evidence.family.name in _ONLY_COUNTS or _rank(by_rows) < _rank(implied)
    if votes > fits or (votes == fits and by_counts):
        return [other, *claims]
    return [*claims, other] if votes == len(evidence.rows) else claims


def _listed(config: Mapping[str, Plain]) -> int | None:
    """The head_dim of the per-layer lists, where a config class has no key of its own for it."""
    lists = config.get(LAYER_LISTS)
    entries = lists.get("head_dim") if isinstance(lists, Mapping) else None
    if not isinstance(entries, tuple | list) or len(set(entries)) != 1:
        return None
    return plausible(entries[0])


def doubt(geometry: Geometry) -> str:
    """Why it is not certain how wide a head is, one clause; "" when something states it or all that is heard agrees.

    What is inferred may be wrong although the model runs: 128 rows are 16 heads of 8 or 8 heads of 16.
    """
    hidden, heads = (config_number(geometry.config, key) for key in ("hidden_size", "num_attention_heads"))
    for layer in geometry.layers:
        found = layer.attention.head_dim
        if layer.attention.kind != "full" or (found is not None and not found.source.startswith(_INFERRED)):
            continue
        if found is None or found.source.startswith("guessed"):
            return f"layer {layer.index}: nothing says how wide its heads are"
        whole = bool(hidden and heads and hidden % heads == 0)
        others = [claim for claim in found.disputed if whole or "hidden_size //" not in claim.source]
        if others:
            return (
                f"layer {layer.index}: head_dim is {found.value} by {found.source.removeprefix('inferred: ')}, but "
                f"{others[0].value} by {others[0].source.removeprefix('inferred: ')}"
            )
    return ""


def _by_rows(evidence: Evidence) -> tuple[int | None, int]:
    """The head_dim at which q rows and k rows both equal the config's head counts, with the layers that say so."""
    votes: Counter[int] = Counter()
    for rows in evidence.rows:
        heads = config_layer_value(evidence.config, "num_attention_heads", rows.layer)
        kv_heads = config_layer_value(evidence.config, "num_key_value_heads", rows.layer)
        if kv_heads is None and rows.q == rows.k:
            kv_heads = heads
        if not (rows.q and rows.k and heads and kv_heads and heads > 0 and kv_heads > 0):
            continue
        if rows.q * kv_heads == rows.k * heads and rows.q % heads == 0 and plausible(rows.q // heads):
            votes[rows.q // heads] += 1
    if not votes:
        return None, 0
    return votes.most_common(1)[0]


def _layers_that_fit(evidence: Evidence, head_dim: int) -> int:
    """Layers whose rows are whole heads of ``head_dim``, and no more heads than the config has: cuts only shrink."""
    fitting = 0
    for rows in evidence.rows:
        heads = config_layer_value(evidence.config, "num_attention_heads", rows.layer)
        kv_heads = config_layer_value(evidence.config, "num_key_value_heads", rows.layer)
        if any(known % head_dim for known in rows.known):
            continue
        if heads is not None and rows.q and rows.q // head_dim > heads:
            continue
        if kv_heads is not None and rows.k and rows.k // head_dim > kv_heads:
            continue
        fitting += 1
    return fitting


def _rank(value: int | None) -> int:
    return USUAL.index(value) if value in USUAL else len(USUAL)


def _guessed(evidence: Evidence) -> list[Claim]:
    """A guess from the rows alone, where the usual sizes leave one; three layers of four must be whole heads of it."""
    if evidence.family.name in _NO_USUAL_SIZE or not any(rows.known for rows in evidence.rows):
        return []
    fits = {
        value: sum(all(known % value == 0 for known in rows.known) for rows in evidence.rows)
        for value in USUAL
        if value >= 64
    }
    best = max(fits.values())
    if 4 * best < 3 * len(evidence.rows):
        return []
    fitting = [value for value in fits if fits[value] == best]
    widest = max(known for rows in evidence.rows for known in rows.known)
    if fitting[:2] == [128, 64] and widest <= 2048:
        return []
    return [Claim(fitting[0], "guessed: the commonest head_dim that divides the q, k and v rows")]
