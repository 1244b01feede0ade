"""A model with its tokenizer, ready to run: rebuilt from a file, or somebody's live module, which stays as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import MissingDependency, UsageError
from gqacheck.geometry.facts import Geometry

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.tokenizer import TextEncoder

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done (``weights``, a corpus name), how many steps are done, and of how many."""
_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float64": "float64",
           "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a run. corpora: ``CORPUS[@PROTOCOL]`` each.

    live, live_base: the modules themselves, when they are not to be rebuilt from a file. live_tokenizer: beside a live
    module.
    """

    corpora: tuple[str, ...] = ()
    generate: bool = False
    consistency: bool = False
    tokenizer: str | None = None
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    batch_size: int | None = None
    seed: int = 0
    limit: int | None = None
    stop_early: bool = True
    progress: Progress | None = None
    live: Any = None
    live_base: Any = None
    live_tokenizer: Any = None


@dataclass(frozen=True, slots=True)
class Running:
    """A model in evaluation mode with its text encoder (None where nothing needs one)."""

    model: Any
    encoder: TextEncoder | None
    device: str
    dtype: str
    notes: tuple[str, ...] = ()


@contextmanager
def undisturbed(seed: int) -> Iterator[None]:
    """Inside, random numbers start from ``seed`` and autocast is off; what the caller had is put back on the way out.

    Under a caller's autocast a float32 model would compute in another dtype than the one that is reported. Only the
    generators that can be put back are seeded: ``torch.manual_seed`` reaches those of every device.
    """
    import torch

    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def device_of(model: Any) -> torch.device:
    """Where ``model`` takes its ids: where it computes, for a model whose weights accelerate keeps somewhere else.

    Raises:
        CannotRun: its weights are on ``meta``, and nothing brings them from anywhere.
    """
    import torch

    from gqacheck.runtime.configure import CannotRun

    embedding = model.get_input_embeddings()
    for module in (embedding, model):
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):  # accelerate puts several into one
            where = getattr(one, "execution_device", None)
            if where is not None:
                return torch.device(where)
    device: torch.device = embedding.weight.device
    if device.type == "meta":
        raise CannotRun(
            "its weights are on the meta device, so there are no numbers to run: load them first", supported=False
        )
    return device


@contextmanager
def rebuilt(
    checkpoint: Checkpoint,
    geometry: Geometry,
    request: Request,
    *,
    dtype: torch.dtype,
    encoder: TextEncoder | None,
    label: str = "",
) -> Iterator[Running]:
    """The checkpoint's model while it is needed; its memory is given back afterwards.

    Raises:
        CannotRun: no model can be made of it.
    """
    from gqacheck.runtime.rebuild import rebuild

    where = "cpu" if request.device_map else check_device(request.device)
    made = rebuild(checkpoint, geometry, dtype=dtype, device=where, progress=labelled(request.progress, label))
    model = made.model
    from gqacheck.runtime.load import adopt_generation_config, dispatch

    adopt_generation_config(model, checkpoint.generation_config)
    if request.device_map:
        model = dispatch(model, request.device_map)
        where = str(device_of(model))
    notes = made.notes
    del made
    try:
        yield Running(model, encoder, where, str(dtype).removeprefix("torch."), notes)
    finally:
        del model
        give_back(where)


@contextmanager
def borrowed(model: Any, encoder: TextEncoder | None) -> Iterator[Running]:
    """A live module in evaluation mode; its mode is restored afterwards.

    Raises:
        UsageError: it is no causal language model with an embedding and an lm_head.
        CannotRun: there are no weights to run.
    """
    model = _inside(model)
    for part in ("get_input_embeddings", "get_output_embeddings", "base_model", "config"):
        if not hasattr(model, part):
            raise UsageError(f"a {type(model).__name__} cannot be run on text: it has no {part} of transformers")
    if model.get_input_embeddings() is None or model.get_output_embeddings() is None:
        raise UsageError(f"a {type(model).__name__} cannot be run on text: it has no embedding or no lm_head")
    where = str(device_of(model))
    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _own_forward(model):
            yield Running(model, encoder, where, dtype)
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """Inside, ``model`` runs without the autocast that ``Accelerator.prepare`` put around its forward.

    A Trainer with ``bf16=True`` does that before training begins; ``undisturbed`` cannot reach it.
    """
    wrapped, own = vars(model).get("forward"), vars(model).get("_original_forward")
    inner, wanted = getattr(wrapped, "__func__", wrapped), getattr(own, "__func__", own)
    while inner is not wanted and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if own is None or inner is not wanted:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped


def _inside(model: Any) -> Any:
    """The causal language model that ``DataParallel`` copies or that peft put adapters into, adapters included.

    Raises:
        UsageError: adapters that put prompts of their own in front of every text.
    """
    import torch

    while isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "peft_config") and callable(getattr(model, "get_base_model", None)):
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UsageError("adapters that put a learned prompt before every text are not run: give the model alone")
        return model.get_base_model()
    return model


def give_back(device: str) -> None:
    """Frees what a model held before the next one is made."""
    import torch

    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def labelled(progress: Progress | None, label: str) -> Progress | None:
    """``progress`` with ``label`` in front of what is being done."""
    if progress is None or not label:
        return progress
    return lambda what, done, total: progress(label + what, done, total)


def require_run_extra(feature: str) -> None:
    """Nothing, when torch and transformers can be imported.

    Raises:
        MissingDependency: naming the extra.
    """
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise MissingDependency(feature, "run") from error
    del torch, transformers


def check_device(device: str | None) -> str:
    """The device's name, when it exists here.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    import torch

    name = device or "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use cpu, cuda, cuda:N or mps") from error
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {name} was asked for, but torch sees no CUDA device here: use --device cpu")
        index = torch.device(name).index
        if index is not None and index >= torch.cuda.device_count():
            raise UsageError(
                f"device {name} was asked for, but there are only {torch.cuda.device_count()} CUDA devices"
            )
    elif kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(f"device {name} was asked for, but it is not available here: use --device cpu")
    elif kind != "cpu":
        raise UsageError(f"device {name} is not supported: use cpu, cuda, cuda:N or mps")
    return name


def choose_dtype(checkpoint: Checkpoint, asked: str | None, device: str) -> torch.dtype:
    """The dtype to compute in; the file's own is that of most of its weights, float32 when they are 8 bits wide.

    Raises:
        UsageError: ``asked`` is no dtype to compute in.
    """
    import torch

    from gqacheck.runtime.weights import is_floating

    if asked not in (None, "auto", *_DTYPES):
        raise UsageError(f"unknown dtype {asked!r}: use float32, bfloat16, float16 or auto")
    if asked not in (None, "auto"):
        return getattr(torch, _DTYPES[str(asked)])  # type: ignore[no-any-return]
    if asked is None and torch.device(device).type == "cpu":
        return torch.float32
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        if is_floating(info.dtype) and info.kind != "buffer":
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
    most = max(sizes, key=lambda name: sizes[name], default="float32")
    return torch.float32 if most.startswith("float8") else getattr(torch, most)
