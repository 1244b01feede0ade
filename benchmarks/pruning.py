"""``python -m benchmarks.pruning [--write]``: what each way of pruning costs in held-out perplexity, time and memory.

No fine-tuning anywhere. Both trained fixtures (4:1 and 7:1) are brought to the same sizes by every method, and each
result is measured on ``fixtures/heldout.txt`` by the protocol of ``gqacheck --ppl``. What is given for a method is its
excess, ln(PPL / PPL of the base). Scores and least squares see only windows of the training text, which has no
paragraph in common with the held-out text. ``--write`` puts the tables into docs/pruning.md.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.measure import run_once

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pruning.md"
MODELS = {"llama-32x8": "32:8", "qwen2-28x4": "28:4"}
WINDOW, WINDOWS = 256, 128
TAYLOR_WINDOWS, ERROR_WINDOWS = 32, 64
LAYERS = (2, 4, 8, 16)
OURS = "least squares: chosen by its error, o_proj and down_proj rewritten"
TAYLOR = "whole groups by Taylor (`param_first`)"
TRUNCATED = "truncated: KV heads by Taylor, the first query heads"
LLM_PRUNER = "LLM-Pruner's choice: Taylor, summed interleaved"
TORCH_PRUNING = "torch-pruning's own pruner, as in its example"


@dataclass(frozen=True, slots=True)
class Row:
    """One result. excess: ln(PPL / PPL of the base). removed: share of all parameters."""

    size: str
    model: str
    how: str
    removed: float
    perplexity: float
    excess: float


def main() -> int:
    """Measure everything, print the tables; 0, or 1 when a figure misses what docs/pruning.md claims."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/pruning.md")
    parser.add_argument("--only", choices=("quality", "cost"), help="one part; not with --write")
    parser.add_argument("--one", metavar="METHOD", choices=sorted(_METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=8, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(_time_one(asked.one, asked.layers))
        return 0
    failed: list[str] = []
    tables: dict[str, str] = {}
    if asked.only != "quality":
        tables["cost"] = _cost_table()  # first: what is measured here must be small when it starts others
    if asked.only != "cost":
        with ProcessPoolExecutor(len(MODELS), multiprocessing.get_context("spawn")) as pool:
            rows = [row for found in pool.map(_rows, MODELS) for row in found]
        tables["quality"] = _quality_table(rows)
        tables["aims"], failed = _aims(rows)
    for name in ("quality", "aims", "cost"):
        print(tables.get(name, ""))
    if asked.write and not asked.only:
        text = PAGE.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
            before, _, rest = text.partition(begin)
            text = before + begin + table + end + rest.partition(end)[2]
        PAGE.write_text(text, encoding="utf-8")
    for line in failed:
        print(f"MISSED: {line}", file=sys.stderr)
    return bool(failed)


# --- quality


def _rows(name: str) -> list[Row]:
    """Of one model, each told on stderr as it comes."""
    found = []
    for row in _quality(name):
        print(
            f"{row.model}, {row.size}, {row.how}: {row.perplexity:.1f}, {row.excess:.4f}", file=sys.stderr, flush=True
        )
        found.append(row)
    return found


def _quality(name: str) -> Iterator[Row]:
    import torch

    from fixtures.zoo.case import FIXTURES, load
    from pruners.anatomy import dissect
    from pruners.compensate import compensate_biases
    from pruners.importance import taylor, wanda
    from pruners.plan import PruningPlan
    from pruners.reconstruction import reconstruct
    from pruners.select_by_error import least_squares_error
    from pruners.selection import Request, for_parameters, select
    from pruners.surgery import prune
    from pruners.truncate import choose_groups_interleaved, keep_first_queries, keep_top_queries_blind_to_groups

    torch.set_num_threads(1)
    parent, tokenizer = load(FIXTURES / name)
    shape = dissect(parent).shape
    windows = _calibration(tokenizer)
    by_taylor = taylor(parent, windows[:TAYLOR_WINDOWS])
    by_wanda = wanda(parent, windows[:TAYLOR_WINDOWS])
    by_error = least_squares_error(parent, windows[:ERROR_WINDOWS])
    base = _perplexity(parent, tokenizer)
    yield Row("", MODELS[name], "base", 0.0, base, 0.0)

    def groups(share: float) -> Callable[[Any], PruningPlan]:
        return lambda importance: select(shape, importance, Request(share, mlp_layers=(0, 0))).plan

    sizes: dict[str, Callable[[Any], PruningPlan]] = {
        "25 % of KV groups": groups(0.25),
        "50 % of KV groups": groups(0.5),
        "17.4 % of all parameters": lambda importance: for_parameters(shape, importance, 0.174).plan,
    }

    def cut(plan: PruningPlan, then: Callable[[Any, PruningPlan], object] | None = None) -> Any:
        child = prune(copy.deepcopy(parent), plan)
        if then is not None:
            then(child, plan)
        return child

    def mend(child: Any, plan: PruningPlan) -> object:
        return reconstruct(child, parent, plan, windows)

    def shift(child: Any, plan: PruningPlan) -> object:
        return compensate_biases(child, parent, plan, windows[:TAYLOR_WINDOWS])

    for size, plan_by in sizes.items():
        plan, ours = plan_by(by_taylor), plan_by(by_error)
        assert plan.child == ours.child
        methods: dict[str, Callable[[], Any]] = {
            TRUNCATED: partial(keep_first_queries, copy.deepcopy(parent), plan),
            "group-blind top-k of query heads": partial(
                keep_top_queries_blind_to_groups, copy.deepcopy(parent), plan, by_taylor
            ),
            TORCH_PRUNING: partial(_torch_pruning_like, copy.deepcopy(parent), plan.parameters),
            LLM_PRUNER: partial(cut, choose_groups_interleaved(plan, by_taylor)),
            TAYLOR: partial(cut, plan),
            "whole groups by Wanda": partial(cut, plan_by(by_wanda)),
            "whole groups by Taylor, bias compensation": partial(cut, plan, shift),
            "whole groups by Taylor, o_proj and down_proj rewritten": partial(cut, plan, mend),
            OURS: partial(cut, ours, mend),
        }
        for how, make in methods.items():
            child = make()
            value = _perplexity(child, tokenizer)
            removed = 1 - sum(values.numel() for values in child.parameters()) / shape.parameters
            yield Row(size, MODELS[name], how, removed, value, math.log(value / base))


@cache
def _corpus_text() -> str:
    from fixtures.corpus import build_corpus, without_heldout

    return "\n\n".join(document.text for document in without_heldout(build_corpus()[0]))


def _calibration(tokenizer: Any) -> Any:
    from pruners.calibration import calibration_batches

    return calibration_batches(tokenizer, _corpus_text(), n_examples=WINDOWS, seq_len=WINDOW, seed=0)


def _perplexity(model: Any, tokenizer: Any) -> float:
    """As ``gqacheck --ppl fixtures/heldout.txt`` measures it."""
    import torch

    from fixtures.zoo.case import FIXTURES
    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.perplexity import Tally, measure_perplexity
    from gqacheck.runtime.tokenizer import make_encoder

    corpus = load_corpus(str(FIXTURES / "heldout.txt"))
    with torch.inference_mode():
        return measure_perplexity(model.eval(), make_encoder(tokenizer), corpus, tally=Tally()).value


def _torch_pruning_like(model: Any, parameters: int) -> Any:
    """torch-pruning's own pruner at the ratio that comes nearest to so many parameters, never below them."""
    low, high = 0.0, 0.9
    best = model
    for _ in range(7):
        ratio = (low + high) / 2
        child = _torch_pruning(copy.deepcopy(model), ratio)
        if sum(values.numel() for values in child.parameters()) >= parameters:
            best, low = child, ratio
        else:
            high = ratio
    return best


def _torch_pruning(model: Any, ratio: float, ids: Any = None) -> Any:
    """``model`` after the pruner and settings of torch-pruning's example for LLMs (examples/LLMs/prune_llm.py).

    One ratio for heads, channels and the residual stream, norms of weights as importance. Its example's attributes are
    brought in step afterwards. Under sdpa it cannot trace 7:1 at all, so under eager attention.
    """
    import torch
    import torch_pruning as tp

    model.set_attn_implementation("eager")
    model.config.use_cache = False
    heads = {}
    for layer in model.model.layers:
        heads[layer.self_attn.q_proj] = model.config.num_attention_heads
        heads[layer.self_attn.k_proj] = heads[layer.self_attn.v_proj] = model.config.num_key_value_heads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            torch.arange(8)[None] if ids is None else ids,
            tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            global_pruning=False,
            pruning_ratio=ratio,
            head_pruning_ratio=ratio,
            ignored_layers=[model.lm_head],
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            output_transform=lambda out: out.logits,
        )
        for group in pruner.step(interactive=True):
            group.prune()
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    model.config.use_cache = True
    return model


def _quality_table(rows: Sequence[Row]) -> str:
    bases = ", ".join(f"{row.model} {row.perplexity:.1f}" for row in rows if row.how == "base")
    names = list(MODELS.values())
    head = " | ".join(f"{name} PPL | {name} excess" for name in names)
    lines = [f"Held-out PPL of the bases: {bases}.", "", f"| removed | how | {head} |", "|---|---|" + "---:|---:|" * 2]
    keys = list(dict.fromkeys((row.size, row.how) for row in rows if row.size))
    found = {(row.size, row.how, row.model): row for row in rows}
    for size, how in keys:
        cells = []
        for name in names:
            row = found[size, how, name]
            cells.append(f"{_number(row.perplexity)} | {row.excess:.3f}")
        bold = "**" if how == OURS else ""
        lines.append(f"| {size} | {bold}{how}{bold} | {' | '.join(cells)} |")
    shares = {
        size: ", ".join(f"{name} {found[size, OURS, name].removed:.1%}" for name in names)
        for size in dict.fromkeys(size for size, _ in keys)
    }
    lines += ["", "Of all parameters: " + "; ".join(f"{size}: {share}" for size, share in shares.items()) + "."]
    return "\n".join(lines).replace("%", " %").replace("  %", " %") + "\n"


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _aims(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Ours over each rival's excess, and where 25 % of KV groups miss an aim."""
    found = {(row.size, row.how, row.model): row.excess for row in rows}
    rivals = {TRUNCATED: 1 / 10, TAYLOR: 1 / 3, LLM_PRUNER: 1.0, TORCH_PRUNING: 1.0}
    lines = ["| our excess as a share of that of | " + " | ".join(MODELS.values()) + " | aim |", "|---|---:|---:|---:|"]
    failed = []
    for size in dict.fromkeys(row.size for row in rows if row.size):
        for rival, aim in rivals.items():
            shares = [found[size, OURS, name] / found[size, rival, name] for name in MODELS.values()]
            binding = size.startswith("25 %")
            if binding and max(shares) > aim:
                failed.append(f"{size}, {rival}: {max(shares):.2f} where {aim:.2f} was to be reached")
            goal = f"{aim:.2f}" if binding else ""
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| {rival.partition(':')[0]}, {size} | {cells} | {goal} |")
    return "\n".join(lines) + "\n", failed


# --- cost


def _geometry(layers: int) -> Any:
    """A random Llama, 16:4 heads of 32, hidden 512, 1536 channels: 3.0 million parameters a layer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


def _plan(model: Any) -> Any:
    """A quarter of KV groups and channels, by weights."""
    from pruners.anatomy import dissect
    from pruners.importance import magnitude
    from pruners.selection import Request, select

    return select(dissect(model).shape, magnitude(model), Request(0.25)).plan


def _ids() -> Any:
    import torch

    return torch.randint(3, 1000, (8, 128), generator=torch.Generator().manual_seed(0))


def _by_surgery(model: Any) -> None:
    from pruners.surgery import prune

    prune(model, _plan(model))


def _by_graph(model: Any) -> None:
    from pruners.dependency import prune_by_graph

    prune_by_graph(model, _plan(model))


def _with_least_squares(model: Any) -> None:
    from pruners.reconstruction import reconstruct
    from pruners.surgery import prune

    plan = _plan(model)
    reconstruct(prune(copy.deepcopy(model), plan), model, plan, _ids())


_METHODS: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "surgery": _by_surgery,
    "graph": _by_graph,
    "torch-pruning": lambda model: _torch_pruning(model, 0.25),
    "least-squares": _with_least_squares,
}
_TOLD = {
    "surgery": "`pruners.surgery` (scores by weights, plan, cut)",
    "graph": "`pruners.dependency` (the same plan through torch-pruning's graph)",
    "torch-pruning": "torch-pruning's own pruner",
    "least-squares": "cut, and 8 windows of 128 fitted by least squares",
}


def _time_one(method: str, layers: int) -> float:
    """Seconds of CPU of one method on a model that is there already: others on the machine hardly change it."""
    import torch_pruning  # noqa: F401 - loading libraries is nobody's cost

    import pruners.reconstruction
    import pruners.selection  # noqa: F401

    model = _geometry(layers)
    begin = time.process_time()
    _METHODS[method](model)
    return time.process_time() - begin


def _cost_table() -> str:
    """CPU seconds by number of layers, and peak memory over that of a process that only builds the model."""
    lines = [
        "| what | "
        + " | ".join(f"{n} layers" for n in LAYERS)
        + f" | peak memory beside the model, {LAYERS[-1]} layers |",
        "|---|" + "---:|" * (len(LAYERS) + 1),
    ]
    command = [sys.executable, "-m", "benchmarks.pruning", "--one"]
    deepest = str(LAYERS[-1])
    idle = run_once([*command, "nothing", "--layers", deepest]).peak_mib
    for method, told in _TOLD.items():
        cells = []
        for layers in LAYERS:
            run = run_once([*command, method, "--layers", str(layers)])
            cells.append(f"{float(run.output.split()[-1]):.2f} s")
        lines.append(f"| {told} | {' | '.join(cells)} | {max(run.peak_mib - idle, 0):.0f} MiB |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
