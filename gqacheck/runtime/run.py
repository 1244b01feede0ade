"""Rebuild a checkpoint, run it on text, and hand back what happened as plain facts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import GqacheckError, MissingDependency, UsageError
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.outcomes import Perplexity, RuntimeFacts

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.corpus import Corpus

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done (``weights``, a corpus name), how many steps are done, and of how many."""


def run_model(
    checkpoint: Checkpoint,
    geometry: Geometry,
    *,
    corpora: Sequence[str] = ("smoke",),
    tokenizer: str | None = None,
    device: str | None = "cpu",
    dtype: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> RuntimeFacts:
    """What happened when the checkpoint was rebuilt and read ``corpora``: perplexities, or the failure in a sentence.

    corpora: ``smoke``, or paths of text files, each with ``@windows-N`` if wanted. dtype: ``float32``, ``bfloat16``,
    ``float16`` or ``auto`` (the file's own); by default the file's own on a GPU and float32 on a CPU, where half
    precision is slow. limit: windows per corpus at most. Nothing is random today; ``seed`` fixes what will be.

    Raises:
        UsageError: an unknown corpus, device or dtype.
        ReadError: a corpus or the weights cannot be read.
        MissingTokenizer: no tokenizer is stored and none was named.
        CannotRun: the file is not at fault, but such a model is not run (packed weights, no stock class, no config).
        MissingDependency: torch or transformers is not installed.
    """
    require_run_extra("--ppl")
    import torch

    from gqacheck.runtime.configure import CannotRun, one_line
    from gqacheck.runtime.corpus import load_corpus
    from gqacheck.runtime.perplexity import Tally, measure_perplexity
    from gqacheck.runtime.quiet import quiet_and_offline
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.skeleton import refuse
    from gqacheck.runtime.tokenizer import make_encoder, open_tokenizer

    started = time.perf_counter()
    where = check_device(device)
    wanted = choose_dtype(checkpoint, dtype, where)
    if (limit is not None and limit < 1) or (batch_size is not None and batch_size < 1):
        raise UsageError("limit and batch_size count windows: give at least 1")
    texts = [load_corpus(name) for name in corpora]
    _refuse_twice(texts)
    tally = Tally()
    found: list[Perplexity] = []
    notes: tuple[str, ...] = ()
    failure: str | None = None
    stage: str | None = None
    with quiet_and_offline(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            refuse(checkpoint, geometry)  # before the tokenizer: what cannot be run at all needs none
            encoder = make_encoder(open_tokenizer(checkpoint, tokenizer))
            rebuilt = rebuild(checkpoint, geometry, dtype=wanted, device=where, progress=progress)
            notes = rebuilt.notes
            for text in texts:
                found.append(
                    measure_perplexity(
                        rebuilt.model,
                        encoder,
                        text,
                        tally=tally,
                        batch_size=batch_size,
                        limit=limit,
                        progress=progress,
                    )
                )
        except CannotRun as error:
            if not error.supported:
                raise
            failure, stage = str(error), error.stage
        except (GqacheckError, MemoryError, OSError):
            raise
        except torch.OutOfMemoryError as error:
            raise CannotRun(f"{where} has not enough memory: try --batch-size 1 or --device cpu") from error
        except Exception as error:  # a forward pass raises whatever the stack raises: that is what is reported
            failure, stage = f"the forward pass raises {type(error).__name__}: {one_line(error)}", "forward"
    return RuntimeFacts(
        perplexities=tuple(found),
        failure=failure,
        failure_stage=stage,
        non_finite=tally.non_finite,
        logits_seen=tally.logits,
        notes=notes,
        device=where,
        dtype=str(wanted).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


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

    if asked not in (None, "auto", "float32", "float16", "bfloat16", "float64"):
        raise UsageError(f"unknown dtype {asked!r}: use float32, bfloat16, float16 or auto")
    if asked not in (None, "auto"):
        return getattr(torch, str(asked))  # type: ignore[no-any-return]
    if asked is None and torch.device(device).type == "cpu":
        return torch.float32
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        if is_floating(info.dtype) and info.kind != "buffer":
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
    most = max(sizes, key=lambda name: sizes[name], default="float32")
    return torch.float32 if most.startswith("float8") else getattr(torch, most)


def _refuse_twice(texts: Sequence[Corpus]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for text in texts:
        key = (text.fingerprint, text.window)
        if key in seen:
            raise UsageError(f"corpora {seen[key]} and {text.name} are the same text: reading it twice proves nothing")
        seen[key] = text.name
