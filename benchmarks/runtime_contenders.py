"""One contender of ``benchmarks.runtime``: loads a model, then measures once for every line it reads, JSON out.

argv: gqacheck, lm-eval, pruner, backbone or "backbone and head"; the model's folder, the text, the protocol, the batch.
"""

from __future__ import annotations

import json
import math
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

Contender: TypeAlias = tuple[Any, Callable[[], "float | None"]]


def ours(folder: str, text: str, protocol: str, batch: int) -> Contender:
    """``measure_perplexity``, the text's windows and their tokens included."""
    import gqacheck
    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.perplexity import measure_perplexity
    from gqacheck.runtime.scoring import Tally
    from gqacheck.runtime.tokenizer import make_encoder

    model, tokenizer = gqacheck.load_model(folder, dtype="float32")
    encoder, corpus = make_encoder(tokenizer), load_corpus(f"{text}@{protocol}")
    return model, lambda: measure_perplexity(model, encoder, corpus, tally=Tally(), batch_size=batch).value


def lm_eval(folder: str, text: str, protocol: str, batch: int) -> Contender:
    """lm-evaluation-harness: ``loglikelihood_rolling`` of its ``hf`` model."""
    sys.modules["sacrebleu"] = types.ModuleType("sacrebleu")  # of other metrics, and not installed with it
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    length = int(protocol.rpartition("-")[2])
    model = get_model("hf")(pretrained=folder, device="cpu", dtype="float32", batch_size=batch, max_length=length)
    words = Path(text).read_text(encoding="utf-8")
    n_tokens = len(model.tok_encode(words))

    def measure() -> float:
        asked = [Instance("loglikelihood_rolling", {}, (words,), 0)]
        return math.exp(-model.loglikelihood_rolling(asked, disable_tqdm=True)[0] / n_tokens)

    return model.model, measure


def pruner(folder: str, text: str, protocol: str, batch: int) -> Contender:
    """The loop of LLM-Pruner's ``PPLMetric``: whole logits, and the losses of all positions of a batch at once."""
    model, batches = _loaded(folder, text, protocol, batch)
    loss = torch.nn.CrossEntropyLoss(reduction="none")

    @torch.no_grad()
    def measure() -> float:
        nlls = []
        for ids in batches():  # the text's tokens included, as everywhere but in the limits
            logits = model(ids).logits
            shifted, labels = logits[:, :-1, :].contiguous(), ids[:, 1:].contiguous()
            nlls.append(loss(shifted.reshape(-1, shifted.size(-1)), labels.view(-1)))
        return float(torch.cat(nlls).mean().exp())

    return model, measure


def backbone(folder: str, text: str, protocol: str, batch: int) -> Contender:
    """The limit: the decoder layers alone, on the positions that are needed."""
    model, read = _loaded(folder, text, protocol, batch)
    batches = read()

    @torch.inference_mode()
    def measure() -> None:
        for ids in batches:
            model.base_model(ids[:, :-1], use_cache=False)

    return model, measure


def backbone_and_head(folder: str, text: str, protocol: str, batch: int) -> Contender:
    """The same with the product that gives the logits, of which nothing is made."""
    model, read = _loaded(folder, text, protocol, batch)
    batches = read()

    @torch.inference_mode()
    def measure() -> None:
        for ids in batches:
            model.lm_head(model.base_model(ids[:, :-1], use_cache=False).last_hidden_state)

    return model, measure


def _loaded(folder: str, text: str, protocol: str, batch: int) -> tuple[Any, Callable[[], list[torch.Tensor]]]:
    """The model of transformers, and what reads the windows that gqacheck reads, as batches."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.protocols import plan_windows
    from gqacheck.runtime.tokenizer import make_encoder

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = make_encoder(AutoTokenizer.from_pretrained(folder))
    corpus = load_corpus(f"{text}@{protocol}")

    def read() -> list[torch.Tensor]:
        rows = [list(window.ids) for window in plan_windows(corpus, encoder, 1 << 20).windows]
        alike = [[row for row in rows if len(row) == length] for length in sorted({len(row) for row in rows})]
        return [torch.tensor(some[i : i + batch]) for some in alike for i in range(0, len(some), batch)]

    return model, read


def n_scored(folder: str, text: str, protocol: str) -> int:
    """Positions that the protocol scores."""
    from transformers import AutoTokenizer

    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.protocols import plan_windows
    from gqacheck.runtime.tokenizer import make_encoder

    encoder = make_encoder(AutoTokenizer.from_pretrained(folder))
    return sum(window.scored for window in plan_windows(load_corpus(f"{text}@{protocol}"), encoder, 1 << 20).windows)


CONTENDERS = {
    "gqacheck": ours,
    "lm-eval": lm_eval,
    "pruner": pruner,
    "backbone": backbone,
    "backbone and head": backbone_and_head,
}


def main() -> None:
    """One line for each that is read."""
    name, folder, text, protocol, batch = sys.argv[1:]
    speak, sys.stdout = sys.stdout, sys.stderr
    tokens = n_scored(folder, text, protocol)
    model, measure = CONTENDERS[name](folder, text, protocol, int(batch))
    for parameter in model.parameters():  # a mapped file is in memory only where it was touched
        parameter.detach().sum()
    print("ready", file=speak, flush=True)
    before = memory("VmRSS")
    for _ in sys.stdin:
        peak = memory("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        begin, cpu = time.perf_counter(), time.process_time()
        value = measure()
        found = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu, "tokens": tokens}
        found |= {"above": memory("VmHWM") - before, "peak": max(peak, memory("VmHWM"))}
        print(json.dumps(found if value is None else found | {"value": value}), file=speak, flush=True)


def memory(what: str) -> float:
    """MiB of this process."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in text.splitlines() if line.startswith(what + ":")).split()[1]) / 1024


if __name__ == "__main__":
    main()
