"""``python -m benchmarks.runtime``: perplexity beside lm-eval, LLM-Pruner's loop and the bare forward; loading.

Every contender is a process of its own that loads once and then measures when it is told to, one after the other, round
by round; ratios are of the same round. Weights are float32, which is what a CPU runs by default here and what lm-eval
is told: in half precision the two would not compute the same thing (lm-eval's log_softmax stays in the model's dtype).

    python -m benchmarks.runtime [ROUNDS] [small|large|loading|stopping ...]
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import median_ratio, median_seconds, peak, side_by_side

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "fixtures" / "llama-32x8"
LM_EVAL = ROOT / ".consumer-lm-eval"
PAIRS = {
    "small": [("llm-pruner-128", 4, "pruner"), ("lm-eval-256", 4, "lm-eval")],
    "large": [("llm-pruner-128", 4, "pruner"), ("lm-eval-256", 4, "lm-eval")],
}
TOKENS = {"small": 4_096, "large": 1_024}


def main() -> int:
    """Make the models, measure, print one table each; 0."""
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    asked = [word for word in sys.argv[1:] if not word.isdigit()] or ["small", "large", "loading", "stopping"]
    rounds = numbers[0] if numbers else 5
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="gqacheck-bench-", dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch)
        if "large" in asked or "loading" in asked:
            _make("large", folder / "large")
        for size in (name for name in PAIRS if name in asked):
            _make("text", folder / f"{size}.txt", str(TOKENS[size]))
            for protocol, batch, peer in PAIRS[size]:
                model = FIXTURE if size == "small" else folder / "large"
                _compare(
                    f"{size}, {protocol}, batch {batch}", model, folder / f"{size}.txt", protocol, batch, peer, rounds
                )
        if "loading" in asked:
            _loading(folder)
        if "stopping" in asked:
            _stopping(folder, rounds)
    return 0


def _make(*words: str | Path) -> None:
    """In a process of its own, so that the one that measures stays small."""
    subprocess.run([sys.executable, "-m", "benchmarks.runtime_models", *map(str, words)], check=True, cwd=ROOT)


def _compare(told: str, model: Path, text: Path, protocol: str, batch: int, peer: str, rounds: int) -> None:
    if peer == "lm-eval" and not (LM_EVAL / ".ready").exists():
        print(f"\n{told}: lm-eval is not installed: make .consumer-lm-eval/.ready")
        return
    names = ["gqacheck", peer, "backbone", "backbone and head"]
    workers = {name: _start(name, model, text, protocol, batch) for name in names}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            found = _ask(worker)
            if number:  # the first is a warm-up
                seen[name].append(found)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    print(f"\n{told}: {seen['gqacheck'][0]['tokens']:.0f} tokens scored, {rounds} rounds")
    ours = seen["gqacheck"]
    for name, found in seen.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(found, ours, strict=True)]
        cpu = [a["cpu"] / b["cpu"] for a, b in zip(found, ours, strict=True)]
        above, most = (max(each[what] for each in found) for what in ("above", "peak"))
        value = f", perplexity {found[0]['value']:.6g}" if "value" in found[0] else ""
        print(
            f"  {name:<18} {statistics.median(each['seconds'] for each in found):7.2f} s; "
            f"{statistics.median(ratios):.2f}x gqacheck's time ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"{statistics.median(cpu):.2f}x its processor time; {above:6.0f} MiB above the weights "
            f"({above / max(each['above'] for each in ours):.2f}x), {most:6.0f} in all{value}"
        )


def _start(name: str, model: Path, text: Path, protocol: str, batch: int) -> Any:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(LM_EVAL)] * (name == "lm-eval") + [str(ROOT)])
    command = [sys.executable, "-m", "benchmarks.runtime_contenders", name, str(model), str(text), protocol, str(batch)]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert worker.stdout is not None
    if worker.stdout.readline().strip() != "ready":
        raise RuntimeError(f"{name} did not start: run {' '.join(command)}")
    return worker


def _ask(worker: Any) -> dict[str, float]:
    worker.stdin.write("go\n")
    worker.stdin.flush()
    found: dict[str, float] = json.loads(worker.stdout.readline())
    return found


LOAD = """
import resource, sys
import torch, transformers
from gqacheck.runtime import configure, rebuild, tokenizer
import gqacheck
from transformers import LlamaForCausalLM
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, _ = gqacheck.load_model(sys.argv[1], dtype=sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
weights = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()) / 1024
print((after - before) / weights, weights / 1024, after / 1024)
"""


def _loading(folder: Path) -> None:
    """Peak memory of ``load_model`` above what the imports take, over the weights in the dtype that is run."""
    print("\nloading: peak above the imports, over the weights as they are run")
    for stored in ("float16", "bfloat16", "float32"):
        for kind in ("folder", "zip"):
            path = folder / f"{stored}-{kind}"
            _make(kind, folder / "large", path, stored)
            for dtype in ("float32", "auto"):
                command = [sys.executable, "-W", "ignore", "-c", LOAD, str(path), dtype]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
                ratio, weights, whole = map(float, done.stdout.split())
                run = stored if dtype == "auto" else dtype
                print(
                    f"  {stored:>8} {kind:<6} run in {run:<8} {weights:6.0f} MiB: {ratio:.3f}x, {whole:6.0f} MiB in all"
                )
            subprocess.run(["rm", "-r", str(path)], check=True)


def _stopping(folder: Path, rounds: int) -> None:
    """``gqacheck CKPT --ppl FILE`` on a child that is broken, whole processes, with and without the early verdict."""
    subprocess.run(
        [sys.executable, "-m", "fixtures.zoo", "--only", "llama-truncated-bin", str(folder / "zoo")],
        check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (broken,) = [path for path in (folder / "zoo").rglob("*.bin") if "truncated" in str(path)]
    text = ROOT / "fixtures" / "heldout.txt"
    command = [sys.executable, "-m", "gqacheck", str(broken), "--ppl", str(text)]
    commands = {
        "early verdict": command,
        "--no-early-stop": [*command, "--no-early-stop"],
        "no run at all": [sys.executable, "-c", "import torch, transformers.models.llama.modeling_llama"],
    }
    runs = side_by_side(commands, rounds=rounds)
    print(f"\nbroken child, {text.stat().st_size / 1000:.0f} KB of text, {rounds} rounds, whole processes")
    for name, found in runs.items():
        ratio = median_ratio(found, runs["early verdict"])
        print(
            f"  {name:<18} {median_seconds(found):6.2f} s ({ratio:.2f}x), {peak(found):5.0f} MiB, exit {found[0].code}"
        )


if __name__ == "__main__":
    sys.exit(main())
