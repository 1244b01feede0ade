"""lm-eval's own numbers of texts and pages, for a process that has it on its path: JSON in, JSON out.

argv: a JSON object with ``requests``, each a ``folder``, a ``max_length`` (None for lm-eval's own) and ``pages``.
"""

from __future__ import annotations

import json
import sys
import types

sys.modules["sacrebleu"] = types.ModuleType("sacrebleu")  # of other metrics, and not installed with the tests


def measure(folder: str, max_length: int | None, pages: list[str]) -> dict[str, object]:
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.api.registry import get_model
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    model = get_model("hf")(pretrained=folder, device="cpu", dtype="float32", batch_size=2, max_length=max_length)
    docs = [{"page": page} for page in pages]
    asked = [Instance("loglikelihood_rolling", {}, (wikitext_detokenizer(doc),), 0) for doc in docs]
    found = model.loglikelihood_rolling(asked, disable_tqdm=True)
    results = [process_results(doc, (value,)) for doc, value in zip(docs, found, strict=True)]
    return {
        "max_length": model.max_length,
        "log_likelihoods": found,
        "word_perplexity": weighted_perplexity([one["word_perplexity"] for one in results]),
        "byte_perplexity": weighted_perplexity([one["byte_perplexity"] for one in results]),
        "bits_per_byte": bits_per_byte([one["bits_per_byte"] for one in results]),
    }


if __name__ == "__main__":
    requests = json.loads(sys.stdin.read())
    json.dump([measure(**request) for request in requests], sys.stdout)
