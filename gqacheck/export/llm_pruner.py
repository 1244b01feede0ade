"""``--like llm-pruner``: the live model and its tokenizer in one pickle, for tools that insist on ``torch.load``.

The pickle names stock classes of torch, transformers and tokenizers and nothing else, so it loads where gqacheck is not
installed. It is read back as data, never executed. The whole model is in memory here: about the size of its weights as
they are written, and those of a small model twice more, in float32, when it is run. None of that holds for folders,
which are streamed.
"""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqacheck.checkpoint import Checkpoint
from gqacheck.errors import UsageError
from gqacheck.export.config import hub_name
from gqacheck.export.content import Planned
from gqacheck.export.facts import CannotExport, Comparison
from gqacheck.export.form import differs
from gqacheck.export.stream import Progress, cast
from gqacheck.export.verify import ALLOWED, Side, check_folder, compare_with, is_small
from gqacheck.geometry.facts import Geometry
from gqacheck.place import require_space
from gqacheck.result import CheckpointReport
from gqacheck.text import printable

if TYPE_CHECKING:
    import torch

    from gqacheck.runtime.trace import Trace

LIKE = "llm-pruner"
_STOCK = frozenset(("torch", "transformers", "tokenizers", "collections", "builtins", "copyreg", "copy_reg",
                    "__builtin__", "functools", "_codecs", "sentencepiece", "numpy"))  # fmt: skip
"""Packages that a pickle may name which is to load where only torch and transformers are."""
_ROOM = 64 << 20


@dataclass(frozen=True, slots=True)
class Pickled:
    """What was pickled. dtype: of the weights, the commonest first. tokenizer: what became of it, one clause."""

    architecture: str
    dtype: str
    parameters: int
    tokenizer: str
    notes: tuple[str, ...]
    after: CheckpointReport
    comparison: Comparison


def refuse_beside(like: str, *, pad: bool, sized: bool) -> None:
    """Nothing, when ``like`` is known and the other options say something of one pickle.

    Raises:
        UsageError: they do not.
    """
    if like != LIKE:
        raise UsageError(f"--like knows only {LIKE}, not {printable(like, 60)}")
    if pad:
        raise UsageError(f"--pad with --like {LIKE} makes no sense: a pickled model holds layers of any size; drop one")
    if sized:
        raise UsageError(f"--max-shard-size with --like {LIKE} makes no sense: it is one file; leave it out")


def pickle_like(
    path: str,
    before: CheckpointReport,
    *,
    dtype: str | None,
    tokenizer: str | None,
    force: bool,
    progress: Progress | None = None,
) -> Pickled:
    """Writes ``{'model': …, 'tokenizer': …}`` to the new file ``path``, reads it back as data and compares the logits.

    Raises:
        CannotExport: stock classes cannot hold it, or what was written is not what the source is.
    """
    from gqacheck.runtime.configure import CannotRun

    checkpoint, geometry = before.checkpoint, before.geometry
    assert checkpoint is not None
    assert geometry is not None
    _refuse_dropped(geometry)
    try:
        model, notes = _live(checkpoint, geometry, dtype, progress)
    except CannotRun as error:
        raise CannotExport(f"{printable(checkpoint.path)}: {error}") from error
    found, said, fault = _tokenizer(checkpoint, tokenizer)
    notes += [fault] if fault else []
    weights = sum(parameter.nbytes for parameter in model.parameters())
    require_space(os.path.dirname(path), weights + _ROOM, CannotExport, what="the export")
    _save({"model": model, "tokenizer": found}, path)
    after = check_folder(path, before, force=force, what="pickle")
    written = after.checkpoint
    assert written is not None
    assert after.geometry is not None
    _refuse_foreign(written)
    wrong = next(_differences(written, model), "")
    if wrong:
        raise CannotExport(f"{printable(wrong)} does not read back as it was written; nothing was written")
    architecture, dtypes = type(model).__name__, _dtypes(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    source, theirs = Side(checkpoint, geometry), Side(written, after.geometry)
    live = model.float() if is_small(source) else None
    del model
    gc.collect()
    comparison = compare_with(lambda ids: _run(theirs, live, ids), source, found, rounded=dtype, progress=progress)
    if comparison.ran and not comparison.equal:
        raise CannotExport(
            f"the pickle computes something else than the source, from {comparison.layer} on: logits differ by "
            f"{comparison.difference:.2g} of their standard deviation; nothing was written"
        )
    return Pickled(architecture, dtypes, parameters, said, (*notes, _versions()), after, comparison)


def _refuse_dropped(geometry: Geometry) -> None:
    dropped = any("dropped" in (layer.attention.kind, layer.mlp.kind) for layer in geometry.layers)
    if dropped:
        raise CannotExport(
            f"{differs(geometry)}, and stock classes have no layer without it, so no pickle can hold the model that "
            f"loads without gqacheck: export a folder instead (without --like {LIKE})"
        )


def _live(
    checkpoint: Checkpoint, geometry: Geometry, dtype: str | None, progress: Progress | None
) -> tuple[Any, list[str]]:
    """The model as it will be pickled, every object of it of a stock class, and what is not as it was stored."""
    from gqacheck.runtime.load import adopt_generation_config
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.weights import torch_dtype

    rebuilt = rebuild(checkpoint, geometry, progress=progress)
    model = rebuilt.model
    if dtype is not None:
        for name, parameter in model.named_parameters():
            parameter.data = cast(parameter.data, torch_dtype(dtype), Planned(name, (), dtype, ()))
    notes = list(rebuilt.notes)
    dtypes = _dtypes(model)
    if "," in dtypes:
        notes.append(f"weights are stored in {dtypes.replace(', ', ' and ')}, and pickled so")
    name = hub_name(checkpoint.config.values) if checkpoint.config is not None else None
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch_dtype(dtypes.partition(",")[0])
    model.config.name_or_path = model.name_or_path = name or ""
    adopt_generation_config(model, checkpoint.generation_config)
    _own_configs(model)
    return model, notes


def _own_configs(model: Any) -> None:
    """Gives an attention whose head counts are not the config's a copy of the config with its own.

    A rebuilt model has a view there, of a class that only gqacheck has.
    """
    from gqacheck.runtime.skeleton import LayerConfig

    for module in model.modules():
        view = vars(module).get("config")
        if type(view) is LayerConfig:
            own = copy.copy(model.config)
            for key, value in vars(view).items():
                if key != "_shared":
                    setattr(own, key, value)
            module.config = own


def _tokenizer(checkpoint: Checkpoint, given: str | None) -> tuple[Any, str, str]:
    """The tokenizer of a stock class or None, what became of it, and why it is not the source's ("" when it is)."""
    from gqacheck.export.sentencepiece import fast_tokenizer
    from gqacheck.runtime.configure import one_line
    from gqacheck.runtime.tokenizer import MissingTokenizer, SentencePieceTokenizer, open_tokenizer

    info = checkpoint.tokenizer
    if given is None and info is None:
        return None, "none is stored with the checkpoint", ""
    try:
        found = open_tokenizer(checkpoint, given)
    except MissingTokenizer as error:
        why = printable(str(error).partition(": name ")[0], 300)
        return None, "none", f"tokenizer: {why}"
    if isinstance(found, SentencePieceTokenizer):
        try:
            found = fast_tokenizer(found, info.attributes if given is None and info is not None else {})
        except Exception as error:  # a third-party tokenizer raises whatever it likes; the model goes without
            return None, "none", f"tokenizer: it cannot be written ({printable(one_line(error), 200)})"
    found.name_or_path = ""  # a path of this machine
    getattr(found, "init_kwargs", {}).pop("name_or_path", None)
    if given is not None:
        return found, f"pickled beside the model, read from {printable(given)}", ""
    assert info is not None
    where = "the folder" if info.kind == "folder" else "the pickle"
    return found, f"pickled beside the model, recovered from {where}", ""


def _save(made: dict[str, Any], path: str) -> None:
    """torch.save; a full disk is an OSError whoever notices it."""
    import torch

    try:
        torch.save(made, path)
    except RuntimeError as error:  # the writer behind torch.save has an error of its own for it
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    except (pickle.PicklingError, TypeError, AttributeError) as error:  # a third-party tokenizer may hold anything
        raise CannotExport(f"it cannot be pickled: {printable(str(error), 200)}; nothing was written") from error


def _refuse_foreign(written: Checkpoint) -> None:
    """Nothing, when the pickle names only what is there wherever transformers is."""
    foreign = [name for name in written.globals if name.partition(".")[0] not in _STOCK]
    if foreign:
        raise CannotExport(
            f"the pickle would need {printable(', '.join(foreign[:3]))} where it is loaded; nothing was written"
        )


def _differences(written: Checkpoint, model: Any) -> Iterator[str]:
    """What of the model in memory the file does not hold, bit for bit: modules, their attributes, weights, buffers."""
    from gqacheck.runtime.weights import WeightReader

    live = dict(model.named_modules())
    for path, info in written.modules.items():
        if path not in live:
            yield path
            continue
        for name, value in vars(live[path]).items():
            if type(value) in (bool, int, float, str) and repr(info.attributes.get(name, value)) != repr(value):
                yield f"{name} of {path}"
    yield from sorted(live.keys() - written.modules.keys())
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    with WeightReader() as reader:
        for name, tensor in tensors.items():
            stored = written.tensors.get(name)
            if stored is None or not _same_bits(reader.read(stored), tensor.detach()):
                yield name


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are equal, NaN included."""
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)))


def _run(written: Side, live: Any, ids: torch.Tensor) -> Trace:
    """The pickle, built again from what it says of itself as data.

    live: the model that was pickled, where it is small enough to be run too: what its modules say of themselves beyond
    plain numbers, a config of their own, shows there. Where it computes something else, that is returned.
    """
    import torch

    from gqacheck.runtime.on_demand import quick_dtype, read_on_demand
    from gqacheck.runtime.rebuild import rebuild
    from gqacheck.runtime.skeleton import live_layers
    from gqacheck.runtime.trace import apart, trace

    small = is_small(written)
    rebuilt = rebuild(written.checkpoint, written.geometry, dtype=torch.float32, weights=small)
    layers = list(live_layers(rebuilt.model, written.geometry)[1])
    if not small:
        read_on_demand(rebuilt.model, layers, rebuilt.sources, dtype=quick_dtype())
    built = trace(rebuilt.model, layers, ids)
    if live is None:
        return built
    ran = trace(live, list(live_layers(live, written.geometry)[1]), ids)
    return built if apart(ran.logits, built.logits) <= ALLOWED else ran


def _dtypes(model: Any) -> str:
    """Dtypes of the weights, the one of most numbers first."""
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + parameter.numel()
    return ", ".join(sorted(sizes, key=lambda name: (-sizes[name], name)))


def _versions() -> str:
    import torch
    import transformers

    return (
        f"pickled by transformers {transformers.__version__} and torch {torch.__version__.partition('+')[0]}: a pickle "
        "is sure to load with these, and torch.load runs what it names; a folder (without --like) has neither limit"
    )
