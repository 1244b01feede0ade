"""Whether a model copies what it saw: the loss on the second copy of a random sequence, and where copying happens."""

from __future__ import annotations

from typing import Any

import torch

from gqacheck.geometry.outcomes import Induction
from gqacheck.runtime.backends import NotSwitchable, attention, attention_seen, evaluating
from gqacheck.runtime.running import device_of
from gqacheck.runtime.scoring import head_of

SEQUENCES, LENGTH = 8, 48
_SHORTEST = 4
_BY_LAYER = 2  # of the sequences: lm_head is applied once per layer
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def measure_induction(
    model: Any, *, seed: int = 0, sequences: int = SEQUENCES, length: int = LENGTH
) -> Induction | None:
    """Mean loss on ``sequences`` random sequences of ``length`` ids and on their second copies; None when impossible.

    BOS stands in front where the config has one. Impossible: fewer than 9 positions or 2 ordinary ids, or a forward
    pass that raises (whoever asked for one reports that). The ids depend on the seed and on the number of rows alone,
    so a child reads what its base read.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads": repeated random sequences and prefix
    matching scores; nostalgebraist 2020, "interpreting GPT: the logit lens": what a layer's output says already.

    Raises:
        RuntimeError: out of memory.
    """
    bos = next(iter(_tokens(model, "bos_token_id")), None)
    stated = getattr(model.config, "max_position_embeddings", None)
    if isinstance(stated, int) and stated > 0:
        length = min(length, (stated - (bos is not None)) // 2)
    if length < _SHORTEST:
        return None
    device = device_of(model)
    numbers = ordinary_ids(model, sequences * length, seed=seed)
    if len(set(numbers)) < 2:
        return None
    copies = torch.tensor(numbers, device=device).view(sequences, length).repeat(1, 2)
    front = 0 if bos is None else 1
    if bos is not None:
        copies = torch.cat([copies.new_full((sequences, 1), bos), copies], 1)
    try:
        with torch.no_grad(), evaluating(model):
            losses = torch.stack([_losses(model, row) for row in copies])
            layers = _looking_back(model, copies[:_BY_LAYER], front, length)
            drops = _drops_by_layer(model, copies[:_BY_LAYER], front, length)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # the comparisons, which run the same passes, say what it was
        return None
    first, second = _two_copies(losses, front + length)
    return Induction(first, second, layers, drops)


def _two_copies(losses: torch.Tensor, second: int) -> tuple[float, float]:
    """Mean loss of the first and of the second copy, of losses [B, T - 1].

    second: position of the second copy's first token, which nothing announces.
    """
    return float(losses[:, : second - 1].mean()), float(losses[:, second:].mean())


def ordinary_ids(model: Any, count: int, *, seed: int) -> list[int]:
    """``count`` random ids that the embedding has rows for and that are not BOS, EOS or padding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special = {number for name in _SPECIAL for number in _tokens(model, name)}
    allowed = torch.tensor([number for number in range(rows) if number not in special] or [0])
    generator = torch.Generator().manual_seed(seed)
    return allowed[torch.randint(len(allowed), (count,), generator=generator)].tolist()


def _tokens(model: Any, name: str) -> list[int]:
    """The ids that the config gives for a special token, of those that the embedding has a row for."""
    value = getattr(model.config, name, None)
    rows = int(model.get_input_embeddings().weight.shape[0])
    return [n for n in (value if isinstance(value, list | tuple) else [value]) if type(n) is int and 0 <= n < rows]


def _losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods [T - 1] in nats of ``ids`` [T] from the second on."""
    return _losses_of(model(input_ids=ids[None], use_cache=False).logits[0], ids)


def _losses_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    wanted = ids[1:].to(logits.device)
    return torch.nn.functional.cross_entropy(logits[:-1].float(), wanted, reduction="none").double().cpu()


def _drops_by_layer(model: Any, copies: torch.Tensor, front: int, length: int) -> tuple[float, ...]:
    """Per layer, the loss that the second copy saves when the final norm and lm_head read that layer's output.

    () where they are not found, or do not make the model's own logits of the last layer's output.
    """
    layers = _layers(model)
    if not layers:
        return ()
    outputs: list[torch.Tensor] = []
    norms: list[torch.nn.Module] = []

    def keep(module: torch.nn.Module, given: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    def find(module: torch.nn.Module, given: Any, output: Any) -> None:
        if outputs and given and given[0] is outputs[-1] and module not in norms:
            norms.append(module)

    others = [module for module in model.base_model.children() if module is not layers]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    hooks += [module.register_forward_hook(find) for module in others]
    head, losses = head_of(model), []
    try:
        for row in copies:
            outputs.clear()
            own = model(input_ids=row[None], use_cache=False).logits[0]
            if len(norms) != 1 or len(outputs) != len(layers):
                return ()
            last = head.logits(norms[0](outputs[-1])[0])
            if not torch.allclose(own.float(), last.to(own.device).float(), rtol=1e-3, atol=1e-3):
                return ()
            losses.append(torch.stack([_losses_of(head.logits(norms[0](output)[0]), row) for output in outputs]))
    finally:
        for hook in hooks:
            hook.remove()
    means = [_two_copies(of, front + length) for of in torch.stack(losses).unbind(1)]
    return tuple(first - second for first, second in means)


def _layers(model: Any) -> Any:
    """The list of decoder layers of the backbone; None where none has as many as the config says."""
    wanted = getattr(model.config, "num_hidden_layers", None)
    lists = (part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList))
    return next((part for part in lists if len(part) == wanted), None)


def _looking_back(model: Any, copies: torch.Tensor, front: int, length: int) -> tuple[float, ...]:
    """Per layer, the best head's mean attention from the second copy to the token after the same one in the first.

    () where not every layer computes attention weights under eager attention.
    """
    at = torch.arange(front + length, front + 2 * length - 1, device=copies.device)
    heads: dict[str, torch.Tensor] = {}

    def look(path: str, weights: torch.Tensor) -> None:
        """Adds up the shares [Hq] of one module."""
        if min(weights.shape[-2:]) >= copies.shape[1]:
            here = at.to(weights.device)
            shares = weights[0, :, here, here - length + 1].float().mean(-1).cpu()
            heads[path] = heads.get(path, torch.zeros_like(shares)) + shares

    try:
        with attention(model, "eager"), attention_seen(model, look):
            for row in copies:
                model(input_ids=row[None], use_cache=False)
    except NotSwitchable:
        return ()
    if len(heads) != getattr(model.config, "num_hidden_layers", None):
        return ()
    return tuple(float(shares.max()) / len(copies) for shares in heads.values())
