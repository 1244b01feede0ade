"""What someone does with an exported folder who has never heard of gqacheck. Run as a script; see ``strangers.py``."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
import traceback
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


class _NoGqacheck:
    """A finder that makes the import of gqacheck fail, though it may be installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in ("gqacheck", "pruners"):
            raise ModuleNotFoundError(f"No module named {name!r}")


def load(folder: str, **options: Any) -> Any:
    """The model in float32 and eval mode; every tensor of the file and of the model is accounted for."""
    options = {"dtype": torch.float32, "trust_remote_code": True, **options}
    if os.path.isfile(folder):
        return _load_pickle(folder, **{key: value for key, value in options.items() if key != "trust_remote_code"})
    if isinstance(options["dtype"], str) and options["dtype"] != "auto":
        options["dtype"] = getattr(torch, options["dtype"])
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(told.values()), told
    return model.eval()


def _load_pickle(path: str, dtype: Any, attn_implementation: str | None = None) -> Any:
    """The live model as LLM-Pruner's own scripts get it."""
    before = set(sys.modules)
    model = torch.load(path, map_location="cpu", weights_only=False)["model"]
    assert "transformers_modules" not in {name.partition(".")[0] for name in sys.modules.keys() - before}
    if dtype != "auto":
        model.to(dtype)
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model.eval()


def answers(folder: str, ids: list[list[int]], mask: list[list[int]], out: str, **options: Any) -> dict[str, Any]:
    """Logits and greedy text in every cache, written to ``out``."""
    model = load(folder, **options)
    save_answers(model, torch.tensor(ids), torch.tensor(mask), out)
    return {"class": type(model).__name__, "dtype": str(model.dtype)}


@torch.inference_mode()
def logits(folder: str, ids: list[list[int]], out: str, **options: Any) -> dict[str, Any]:
    """Logits without a cache, and whether greedy text is the same with one."""
    model, batch = load(folder, **options), torch.tensor(ids)
    torch.save(model(input_ids=batch, use_cache=False).logits, out)
    texts = [model.generate(input_ids=batch, **GREEDY, use_cache=cached) for cached in (True, False)]
    return {"class": type(model).__name__, "cached": torch.equal(*texts)}


@torch.inference_mode()
def save_answers(model: Any, ids: Any, mask: Any, out: str) -> None:
    """The same for a model in memory; the reference is made with this too."""
    found = {
        "logits": model(input_ids=ids, use_cache=False).logits,
        "padded": model(input_ids=ids, attention_mask=mask, use_cache=False).logits,
    }
    ways = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},
        "none": {"use_cache": False},
        "beams": {"num_beams": 3},
    }
    for name, options in ways.items():
        found[name] = model.generate(input_ids=ids, attention_mask=mask, **GREEDY, **options)
    torch.save(found, out)


def round_trip(folder: str, out: str, **options: Any) -> None:
    """Load and save."""
    load(folder, **{"dtype": "auto", **options}).save_pretrained(out)


def config(folder: str) -> dict[str, Any]:
    """What AutoConfig makes of it."""
    found = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    return {"class": type(found).__name__, "values": json.loads(found.to_json_string(use_diff=False))}


def _counting(seen: list[int]) -> str:
    """The name of an attention implementation that is eager's and writes down which layers call it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def counting(module: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(module.layer_idx)
        return sys.modules[type(module).__module__].eager_attention_forward(module, *arguments, **options)

    AttentionInterface.register("counting", counting)
    AttentionMaskInterface.register("counting", eager_mask)
    return "counting"


def set_attention(folder: str, ids: list[list[int]], mask: list[list[int]]) -> dict[str, Any]:
    """Which layers follow ``set_attn_implementation``, and how far apart the implementations are."""
    seen: list[int] = []
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    real = torch.tensor(mask).bool()
    model = load(folder)
    found = {}
    with torch.inference_mode():
        for name in ("eager", _counting(seen), *(["sdpa"] if model._supports_sdpa else [])):
            model.set_attn_implementation(name)
            found[name] = model(**batch).logits[real]
    spread = found["eager"].std()
    return {
        "layers": seen,
        "apart": {name: float((logits - found["eager"]).abs().max() / spread) for name, logits in found.items()},
    }


def gradients(folder: str, ids: list[list[int]], out: str, checkpointing: bool) -> dict[str, float]:
    """Loss and gradients of one batch, with or without gradient checkpointing."""
    model = load(folder, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = torch.tensor(ids)
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, out)
    return {"loss": loss.item()}


def train(folder: str, ids: list[list[int]], out: str) -> dict[str, Any]:
    """Two Trainer steps with a checkpoint, and the loss of that checkpoint when it is loaded like any folder."""
    from transformers import Trainer, TrainingArguments

    model = load(folder)
    before = copy.deepcopy(model.state_dict())
    arguments = TrainingArguments(
        output_dir=out,
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
    )
    data = [{"input_ids": line, "labels": line} for line in ids]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    again = load(os.path.join(out, "checkpoint-2"))
    batch = torch.tensor(ids)
    with torch.inference_mode():
        apart = (again(input_ids=batch).logits - model.eval()(input_ids=batch).logits).abs().max()
    return {"changed": sorted(changed), "all": sorted(before), "apart": float(apart)}


def resume(folder: str, ids: list[list[int]], out: str) -> dict[str, Any]:
    """Four Trainer steps at once, and the last two of them again from the checkpoint after the second."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=out, max_steps=4, save_steps=2, per_device_train_batch_size=1, learning_rate=1e-2, seed=3,
        report_to=[], use_cpu=True, disable_tqdm=True, gradient_checkpointing=True,
    )  # fmt: skip
    data = [{"input_ids": line, "labels": line} for line in ids]
    whole, second = (Trainer(model=load(folder), args=arguments, train_dataset=data) for _ in range(2))
    loss = whole.train().training_loss
    second.train(resume_from_checkpoint=os.path.join(out, "checkpoint-2"))
    ends = [trainer.model.state_dict() for trainer in (whole, second)]
    apart = max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0])
    return {"steps": second.state.global_step, "apart": apart, "loss": loss}


def lm_eval(folder: str, pairs: list[list[str]], texts: list[str]) -> dict[str, Any]:
    """What lm-eval's ``hf`` model says of continuations and of whole texts."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    model = get_model("hf")(
        pretrained=folder, trust_remote_code=True, device="cpu", dtype="float32", batch_size=2, max_length=64
    )
    asked = [Instance("loglikelihood", {}, tuple(pair), 0) for pair in pairs]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    return {
        "class": type(model.model).__name__,
        "pairs": model.loglikelihood(asked, disable_tqdm=True),
        "texts": model.loglikelihood_rolling(rolling, disable_tqdm=True),
    }


def lora(folder: str, ids: list[list[int]], targets: Any, out: str) -> dict[str, Any]:
    """A LoRA step: which adapters have which features, which got a gradient, what saving and merging do."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = load(folder)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    sizes = {
        name.removeprefix("base_model.model."): (module.in_features, module.out_features)
        for name, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    }
    batch = torch.tensor(ids)
    optimiser = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # B starts at zero, so A has no gradient in the first step
        optimiser.zero_grad()
        tuned(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    idle = [n for n, p in tuned.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    tuned.eval()
    with torch.inference_mode():
        adapted = tuned(input_ids=batch).logits
    tuned.save_pretrained(out)
    with torch.inference_mode():
        reloaded = PeftModel.from_pretrained(load(folder), out).eval()(input_ids=batch).logits
        whole = tuned.merge_and_unload()
        merged = saved = whole(input_ids=batch).logits
        if os.path.isdir(folder):
            whole.save_pretrained(os.path.join(out, f"merged-{os.path.basename(folder)}"))
            saved = load(os.path.join(out, f"merged-{os.path.basename(folder)}"))(input_ids=batch).logits
    return {
        "saved": float((merged - saved).abs().max()),
        "sizes": sizes,
        "idle": idle,
        "reloaded": float((adapted - reloaded).abs().max()),
        "merged": float((adapted - merged).abs().max() / adapted.std()),
    }


def from_config(folder: str) -> dict[str, Any]:
    """A new model of random weights from the config alone: shapes, and whether every part was initialised."""
    made = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(made, trust_remote_code=True)
    spread = {
        name: (list(p.shape), p.float().std().item(), p.float().mean().item()) for name, p in model.named_parameters()
    }
    return {name: {"shape": s, "std": d, "mean": m} for name, (s, d, m) in spread.items()}


def copies(folder: str, ids: list[list[int]]) -> list[dict[str, Any]]:
    """Differences after deepcopy and pickle, each followed by set_attn_implementation on the copy only."""
    model, batch = load(folder, attn_implementation="eager"), torch.tensor(ids)
    found = []
    with torch.inference_mode():
        expected = model(input_ids=batch).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            seen: list[int] = []
            other.set_attn_implementation(_counting(seen))
            apart = float((other(input_ids=batch).logits - expected).abs().max())
            theirs = list(seen)
            model(input_ids=batch)
            found.append({"apart": apart, "layers": theirs, "original": seen[len(theirs) :]})
    return found


def outputs(folder: str, ids: list[list[int]]) -> dict[str, int]:
    """How many hidden states and attention maps a forward pass returns, and the heads of each map."""
    model = load(folder, attn_implementation="eager")
    with torch.inference_mode():
        found = model(input_ids=torch.tensor(ids), output_hidden_states=True, output_attentions=True)
    maps = [a for a in found.attentions if a is not None]
    return {"hidden": len(found.hidden_states), "heads": [a.shape[1] for a in maps]}


def backbone(folder: str, ids: list[list[int]], out: str) -> dict[str, Any]:
    """The model without its head, loaded, saved and loaded again."""
    batch = torch.tensor(ids)
    with torch.inference_mode():
        expected = load(folder)(input_ids=batch, output_hidden_states=True).hidden_states[-1]
        first = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        first.save_pretrained(out)
        second = AutoModel.from_pretrained(out, trust_remote_code=True, dtype=torch.float32).eval()
        apart = [float((m(input_ids=batch).last_hidden_state - expected).abs().max()) for m in (first, second)]
    return {"class": type(second).__name__, "apart": apart, "other engines": second.is_backend_compatible()}


def write_text(folder: str, prompt: str) -> str:
    """``pipeline("text-generation")`` with the tokenizer beside the model."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert len(tokenizer(prompt)["input_ids"]) > 1
    pipe = transformers.pipeline("text-generation", model=folder, trust_remote_code=True)
    return pipe(prompt, max_new_tokens=4, do_sample=False)[0]["generated_text"]


def encode(folder: str, text: str) -> dict[str, Any]:
    """What the tokenizer of the folder makes of a text."""
    if os.path.isfile(folder):
        tokenizer = torch.load(folder, map_location="cpu", weights_only=False)["tokenizer"]
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    special = sorted(tokenizer.all_special_tokens)
    return {
        "ids": tokenizer.encode(text),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "special": special,
    }


def in_chunks(folder: str, ids: list[list[int]]) -> dict[str, Any]:
    """Generation whose prompt is read in pieces, which fills a static cache ahead of time in transformers 5."""
    model, batch = load(folder), torch.tensor(ids)
    whole = model.generate(input_ids=batch, **GREEDY)
    found = {}
    for name in ("static", "dynamic"):
        pieces = model.generate(input_ids=batch, prefill_chunk_size=7, cache_implementation=name, **GREEDY)
        found[name] = torch.equal(whole, pieces)
    return found


def versions() -> dict[str, str]:
    """Of what is in use here."""
    return {"transformers": transformers.__version__, "from": transformers.__file__, "torch": torch.__version__}


def import_gqacheck() -> None:
    """Must fail, or nothing here proves anything."""
    import gqacheck  # noqa: F401


def serve() -> None:
    """Replies until the input ends."""
    sys.meta_path.insert(0, _NoGqacheck())
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print; replies have a line of their own
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply: dict[str, Any] = {"value": globals()[request.pop("do")](**request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    serve()
