"""What the parts of a model are worth, and how scores of matrix lines become scores of heads, channels and KV groups.

A group is judged as what goes when it goes: its KV head and the query heads that stand beside each other in front of
it. LLM-Pruner folds the query scores with ``view(group_size, n_kv).sum(0)``, which adds up heads {g, g + n_kv, …} of
different groups, and then removes neighbouring ones; here the fold is ``view(n_kv, group_size).sum(1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gqacheck.errors import GqacheckError
from pruners.anatomy import Anatomy, LayerAnatomy, Lines
from pruners.plan import ExpertName, ModelShape, PlanError

_CHUNK = 1 << 22
"""Elements that are widened at a time, so that float64 sums cost 32 MB and not four copies of a matrix."""

LineScore = Callable[[LayerAnatomy, int, Lines], torch.Tensor | None]
"""(layer, which of its lines, those lines) -> a score per part, None where they do not count."""


class CannotScore(GqacheckError):
    """The importance of this model's parts cannot be found this way; one sentence says where and why."""


@dataclass(frozen=True, slots=True)
class Importance:
    """How much each part is worth, float64 and never negative; only comparisons between scores mean something.

    queries: per layer [n_q_heads], None where there is no attention that can be cut. kv: per layer [n_kv_heads], what
    the KV head's own k and v score (0 for methods that judge by what reaches o_proj). channels: per layer [channels] of
    the dense MLP. experts: channels of each expert. method: such as ``taylor/param_first``.
    """

    queries: tuple[torch.Tensor | None, ...]
    kv: tuple[torch.Tensor | None, ...]
    channels: tuple[torch.Tensor | None, ...]
    experts: tuple[Mapping[ExpertName, torch.Tensor], ...]
    method: str

    @property
    def n_layers(self) -> int:
        """Decoder layers that were scored."""
        return len(self.queries)

    def groups(self, layer: int) -> torch.Tensor:
        """Scores of one layer's KV groups [n_kv_heads]: the KV head, and the contiguous query heads that are its own.

        >>> two_groups = Importance((torch.tensor([1.0, 2, 3, 4]),), (torch.tensor([0.5, 0]),), (None,), ({},), "told")
        >>> two_groups.groups(0).tolist()
        [3.5, 7.0]
        """
        queries, kv = self.queries[layer], self.kv[layer]
        if queries is None or kv is None:
            raise CannotScore(f"layer {layer} has no attention that can be cut, so it has no KV groups to score")
        return kv + queries.view(len(kv), -1).sum(1)

    def require_fit(self, shape: ModelShape) -> None:
        """Nothing, when these are scores of the parts of ``shape``.

        Raises:
            PlanError: they are not, with what differs.
        """
        if self.n_layers != shape.n_layers:
            raise PlanError(
                f"the importance is of another model: it has {self.n_layers} layers, this one {shape.n_layers}"
            )
        for index, layer in enumerate(shape.layers):
            pairs = [
                ("query heads", self.queries[index], layer.n_q_heads),
                ("KV heads", self.kv[index], layer.n_kv_heads),
                ("channels", self.channels[index], layer.channels),
            ]
            for name, width in layer.experts.items():
                pairs.append((f"channels of expert {name}", self.experts[index].get(name), width))
            for what, scores, size in pairs:
                count = 0 if scores is None else len(scores)
                if count != size:
                    raise PlanError(
                        f"the importance is of another model: in layer {index} it scores {count} {what}, not {size}"
                    )
                if scores is not None and not bool(torch.isfinite(scores).all()):
                    raise PlanError(f"the importance of the {what} of layer {index} is not finite")


def scored_lines(layer: LayerAnatomy) -> list[tuple[int, Lines]]:
    """The weights and biases of one layer's parts, numbered; norms and sinks say nothing about what a head adds."""
    a = layer.layer.attention
    apart = {norm.tensor for norm in (a.q_norm, a.k_norm) if norm is not None}
    return [
        (number, lines)
        for number, lines in enumerate(layer.lines)
        if lines.parameter not in apart and not lines.parameter.endswith(".sinks")
    ]


def gather(anatomy: Anatomy, score: LineScore, method: str) -> Importance:
    """Adds up the scores of all lines that belong to the same part, over the roles that ``score`` lets count.

    Raises:
        CannotScore: a sum is not finite.
    """
    queries: list[torch.Tensor | None] = []
    kv: list[torch.Tensor | None] = []
    channels: list[torch.Tensor | None] = []
    experts: list[Mapping[ExpertName, torch.Tensor]] = []
    for layer in anatomy.layers:
        shape = layer.shape
        sums: dict[tuple[str, ExpertName | None], torch.Tensor] = {
            ("query", None): torch.zeros(shape.n_q_heads, dtype=torch.float64),
            ("kv", None): torch.zeros(shape.n_kv_heads, dtype=torch.float64),
            ("channel", None): torch.zeros(shape.channels, dtype=torch.float64),
            **{("channel", name): torch.zeros(width, dtype=torch.float64) for name, width in shape.experts.items()},
        }
        for number, lines in scored_lines(layer):
            found = score(layer, number, lines)
            if found is not None:
                if not bool(torch.isfinite(found).all()):
                    raise CannotScore(
                        f"layer {layer.index}: the {method} score of {lines.parameter} is not finite: the model's "
                        "weights or what it computes are not, so look at it with gqacheck first"
                    )
                sums[lines.part, lines.owner] += found.to("cpu", torch.float64)
        queries.append(sums["query", None] if shape.n_q_heads else None)
        kv.append(sums["kv", None] if shape.n_q_heads else None)
        channels.append(sums["channel", None] if shape.channels else None)
        experts.append({name: sums["channel", name] for name in shape.experts})
    return Importance(tuple(queries), tuple(kv), tuple(channels), tuple(experts), method)


def by_part(lines: Lines, score: Callable[..., torch.Tensor], *values: torch.Tensor) -> torch.Tensor:
    """A score per part: ``score`` of tensors [parts, lines of each, elements of a line], widened chunk by chunk.

    values: tensors of the shape of ``lines.view``; half precision never reaches ``score``.
    """
    blocks = [lines.blocks(each) for each in values]
    wide = torch.float32 if blocks[0].device.type == "mps" else torch.float64  # Metal knows no float64
    step = max(1, _CHUNK // max(1, blocks[0].shape[1]))
    parts = [
        score(*(each[at : at + step].reshape(-1, lines.unit, each.shape[1] // lines.unit).to(wide) for each in blocks))
        for at in range(0, lines.n_parts, step)
    ]
    return torch.cat(parts).to("cpu", torch.float64)


def require_weights(model: torch.nn.Module, anatomy: Anatomy) -> None:
    """Nothing, when every part has floating-point weights with values.

    Raises:
        CannotScore: one has none yet (``meta``), or is quantised.
    """
    for layer in anatomy.layers:
        for _, lines in scored_lines(layer):
            parameter = model.get_parameter(lines.parameter)
            if parameter.is_meta:
                raise CannotScore(f"{lines.parameter} has no values yet (meta): load the weights first")
            if not parameter.is_floating_point():
                raise CannotScore(f"{lines.parameter} is {parameter.dtype}: score the model before it is quantised")
