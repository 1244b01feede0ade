"""``python -m benchmarks.writeup``: the story of PPL 718,107 on the trained fixtures, in one table.

One in four KV groups is removed from every layer of a 4:1 and of a 7:1 model, six ways that all give the same shapes.
For each: held-out perplexity as ``gqacheck --ppl`` measures it, what a diagnosis by shapes says, and what gqacheck says
with the parent beside it. ``--write`` also puts the table into docs/pairing.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gqacheck
from fixtures.corpus import build_corpus, without_heldout
from fixtures.zoo.case import FIXTURES, load
from fixtures.zoo.surgery import cut_attention, group_members
from gqacheck.repair import repair
from gqacheck.result import CheckpointReport

MODELS = {"llama-32x8": "32:8", "qwen2-28x4": "28:4"}
TEXT = FIXTURES / "heldout.txt"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "pairing.md"
BEGIN, END = "<!-- begin writeup -->\n", "<!-- end writeup -->"
CALIBRATION_WINDOWS, WINDOW = 64, 256
RIDGE = 1e-3
Heads = Sequence[int]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    model: str
    how: str
    perplexity: float
    shapes: str
    gqacheck: str


def main() -> int:
    """Measure everything and print the table; 0."""
    rows = [row for name in MODELS for row in _measure(name)]
    table = _table(rows)
    print(table)
    if "--write" in sys.argv:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")
    return 0


def _measure(name: str) -> list[Row]:
    parent = FIXTURES / name
    model, tokenizer = load(parent)
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    windows = _calibration(tokenizer)
    scores = _head_scores(model, windows)
    keep = model.config.num_key_value_heads * 3 // 4
    kv = [sorted(_best(s.view(-1, group).sum(1), keep)) for s in scores]
    whole = [group_members(kept, group) for kept in kv]
    first = [list(range(keep * group))] * len(kv)
    blind = [sorted(_best(s, keep * group)) for s in scores]
    rows = []
    with tempfile.TemporaryDirectory(prefix="gqacheck-writeup-") as scratch:
        folder = Path(scratch)

        def add(how: str, path: Path) -> None:
            rows.append(_row(name, how, path, parent))

        def cut(how: str, q: Sequence[Heads], then: Callable[[Any, Any], None] | None = None) -> Path:
            child, _ = load(parent)
            for layer, heads, kept in zip(child.model.layers, q, kv, strict=True):
                cut_attention(layer, list(heads), list(kept))
            if then is not None:
                then(child, model)
            path = folder / f"{how}.bin"
            torch.save({"model": child, "tokenizer": tokenizer}, path)
            return path

        add("base", parent)
        truncated = cut("truncated", first)
        add("truncated: KV heads by importance, the first query heads", truncated)
        topk = cut("topk", blind)
        add("group-blind top-k: query heads by importance, whatever their group", topk)
        for told, broken in (("truncated", truncated), ("top-k", topk)):
            fixed = folder / f"fixed-{told}.bin"
            done = repair(broken, base=parent, out=fixed)
            assert done.reference is not None
            assert done.reference.equal, done
            add(f"the {told} file, repaired", fixed)
        add("whole KV groups", cut("groups", whole))
        add(
            "whole KV groups, o_proj rewritten by least squares",
            cut("rewritten", whole, lambda child, base: reconstruct(child, base, whole, windows)),
        )
    return rows


def _calibration(tokenizer: Any) -> torch.Tensor:
    """Windows of training text [B, T]; the held-out text has no paragraph in common with it."""
    documents = without_heldout(build_corpus()[0])
    ids: list[int] = []
    for document in documents:
        ids += tokenizer(document.text)["input_ids"]
        if len(ids) >= CALIBRATION_WINDOWS * WINDOW:
            break
    return torch.tensor(ids[: CALIBRATION_WINDOWS * WINDOW]).view(-1, WINDOW)


def _inputs_of_o(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """What each layer's o_proj is handed, [B*T, Hq*D]."""
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, inputs, number=number: found[number].append(inputs[0].flatten(0, 1))
        )
        for number, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for batch in windows.split(8):
            model.model(batch)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in found]


def _head_scores(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Importance of each query head [Hq]: the norm of what it adds to the residual stream (Wanda's score by head)."""
    scores = []
    for layer, inputs in zip(model.model.layers, _inputs_of_o(model, windows), strict=True):
        weight, dim = layer.self_attn.o_proj.weight, layer.self_attn.head_dim
        each = weight.detach().abs() * inputs.norm(dim=0)
        scores.append(each.view(weight.shape[0], -1, dim).pow(2).sum((0, 2)).sqrt())
    return scores


def _best(scores: torch.Tensor, n: int) -> list[int]:
    return [int(index) for index in scores.topk(n).indices]


def reconstruct(child: Any, base: Any, kept: Sequence[Heads], windows: torch.Tensor) -> None:
    """Rewrite each o_proj so that, on the calibration text, it gives what the parent's gave: W = Y Xᵀ (X Xᵀ + λ)⁻¹.

    Layer by layer from below, X as the child computes it by then and Y from the parent.
    """
    wanted = [
        inputs @ layer.self_attn.o_proj.weight.detach().T
        for layer, inputs in zip(base.model.layers, _inputs_of_o(base, windows), strict=True)
    ]
    for number, layer in enumerate(child.model.layers):
        x = _inputs_of_o(child, windows)[number].double()
        gram = x.T @ x
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        solved = torch.linalg.solve(gram, x.T @ wanted[number].double())
        layer.self_attn.o_proj.weight.data = solved.T.to(layer.self_attn.o_proj.weight.dtype).contiguous()
    assert len(kept) == len(wanted)


def _row(name: str, how: str, path: Path, parent: Path) -> Row:
    beside = None if path == parent else parent
    report = gqacheck.check(path, base=beside, ppl=[str(TEXT)])
    assert report.runtime is not None, report.error
    return Row(MODELS[name], how, report.runtime.perplexities[0].value, _by_shapes(path), _said(report))


def _by_shapes(path: Path) -> str:
    """The write-ups' diagnosis: in every layer whole heads, k like v, o like q, one ratio and no remainder."""
    report = gqacheck.check(path, ignore=["GQA4", "GQA0"])
    assert report.geometry is not None
    ratios = set()
    for layer in report.geometry.layers:
        a = layer.attention
        assert None not in (a.q, a.k, a.v, a.o, a.head_dim)
        n_q, n_kv = a.q.rows // a.head_dim.value, a.k.rows // a.head_dim.value
        if n_q % n_kv or a.k.rows != a.v.rows or a.o.columns != a.q.rows:
            return "broken"
        ratios.add(n_q // n_kv)
    return f"all {'/'.join(map(str, sorted(ratios)))}:1, fine"


def _said(report: CheckpointReport) -> str:
    codes = [f.code for f in report.findings if f.severity == "error"]
    claims = {claim.name: claim.state.value for claim in report.claims}
    if not codes:
        return f"exit {report.exit_code}; pairing {claims['pairing']}"
    return f"exit {report.exit_code}; {', '.join(dict.fromkeys(codes))}"


def _table(rows: Sequence[Row]) -> str:
    lines = ["| heads | what was done | held-out PPL | by shapes | gqacheck |", "|---|---|---:|---|---|"]
    for row in rows:
        number = f"{row.perplexity:,.1f}" if row.perplexity < 1000 else f"{row.perplexity:,.0f}"
        lines.append(f"| {row.model} | {row.how} | {number} | {row.shapes} | {row.gqacheck} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
