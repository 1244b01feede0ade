"""GQA010 to GQA015: what the container itself says, before a single layer is looked at."""

from __future__ import annotations

from collections.abc import Iterator

from gqacheck.checkpoint import Container
from gqacheck.geometry.facts import Subject
from gqacheck.rules.heads import counted
from gqacheck.rules.known_globals import classify
from gqacheck.rules.rule import Quantity, Rule, Severity, Violation
from gqacheck.rules.storages import defects_of, from_defect, needs_torch_storages, oversized_storage, storage_bounds
from gqacheck.text import printable, printable_list


def _needs_pickle(subject: Subject) -> tuple[str, str] | None:
    if "torch" not in subject.checkpoint.format:
        return "pickle", "no pickle was read"
    return None


def _needs_shards(subject: Subject) -> tuple[str, str] | None:
    if subject.checkpoint.format.endswith("-sharded") or defects_of(subject, "shard-index", "shard-size"):
        return None
    return "shards", "the weights are not in several files"


def _needs_file(subject: Subject) -> tuple[str, str] | None:
    return ("file", "a live model is not read from a file") if subject.checkpoint.format == "live-module" else None


def unrecognised_global(subject: Subject) -> Iterator[Violation]:
    """The pickle names a global that checkpoints have no use for.

    What it checks
        Every global that any pickle of the checkpoint names, by its whole name. Known are the rebuilding functions
        and classes of torch, transformers, tokenizers, peft and LLM-Pruner, and plain containers. What can run code,
        start programs, import modules or open files is an error; anything else that is not known is a warning.

    Why it matters
        Loading a pickle imports every global that it names and may call it. A model needs none of these. gqacheck
        reads the opcodes and executes nothing.

    What you would see
        `Unsupported global: GLOBAL … was not an allowed global by default` from torch.load with weights_only=True;
        nothing at all with weights_only=False, where the code simply runs.

    Fix
        Do not unpickle the file. Ask its author for safetensors, or take only the tensors out of it.

    Known misses
        A list is no proof: harmless globals can be put together in harmful ways, and the modelling code of a known
        class is whatever is installed. "Not executed" is a fact about gqacheck, not a verdict on the file.

    Source
        Globals of pickles written by transformers 4.33 to 5.23 for some sixty model classes; the weaknesses that
        public pickle scanners were bypassed with.
    """
    unknown: list[str] = []
    odd: list[tuple[str, str]] = []
    for path in subject.checkpoint.globals:
        standing, reason = classify(path)
        if standing == "dangerous":
            yield _dangerous(path, reason)
        elif standing == "unknown" and reason:
            odd.append((path, reason))
        elif standing == "unknown":
            unknown.append(path)
    for path, reason in odd:
        yield _unknown(f"the pickle names {printable(path, 80)}, which {reason}; it was not executed", 1)
    if unknown:
        names = printable_list(unknown, 4, 80)
        pronoun = "it was" if len(unknown) == 1 else "they were"
        what = counted(len(unknown), "global")
        yield _unknown(
            f"the pickle names {what} that checkpoints rarely hold: {names}; {pronoun} not executed", len(unknown)
        )


def _dangerous(path: str, reason: str) -> Violation:
    return Violation(
        message=f"the pickle names {printable(path, 80)}, which {reason}; it was not executed",
        expected=Quantity(0, "dangerous globals"),
        actual=Quantity(printable(path, 80), "global"),
        source="pickle opcodes",
        consequence="torch.load with weights_only=False and pickle.load import it and may call it",
        fix="do not unpickle this file; get the weights as safetensors from a source that you trust",
        severity=Severity.ERROR,
    )


def _unknown(message: str, count: int) -> Violation:
    return Violation(
        message=message,
        expected=Quantity(0, "unknown globals"),
        actual=Quantity(count, "unknown globals"),
        source="pickle opcodes",
        consequence=(
            "torch.load with weights_only=True refuses it (`Unsupported global`), with weights_only=False it is "
            "imported and may be called"
        ),
        fix="find out what it is before you unpickle the file; saving the weights as safetensors leaves it out",
        severity=Severity.WARNING,
    )


def pickled_module(subject: Subject) -> Iterator[Violation]:
    """The file holds a whole pickled module, not only weights.

    What it checks
        Whether the checkpoint is a module (`torch.save(model)`, or LLM-Pruner's `{"model": …, "tokenizer": …}`).

    Why it matters
        Such a file runs only where the same classes exist with the same attributes: it is tied to the transformers
        version that wrote it, and loading it executes whatever the pickle says.

    What you would see
        `Can't get attribute 'LlamaSdpaAttention'`, `'LlamaModel' object has no attribute 'rotary_emb'`, or
        `Unsupported global` from torch.load with weights_only=True.

    Fix
        Keep it for its per-layer shapes, and give people safetensors: `gqacheck.load_model` rebuilds the model under
        the installed version without unpickling it.

    Known misses
        Whether the installed version is the one that wrote the file.

    Source
        Pickles of transformers 4.33, 4.36 and 4.40 loaded under 5.23.
    """
    checkpoint = subject.checkpoint
    if checkpoint.container is not Container.MODULE or checkpoint.format == "live-module":
        return
    root = checkpoint.modules.get("")
    name = printable(root.class_name if root else "a module", 100)
    yield Violation(
        message=f"a whole module is pickled here ({name}): it runs only where that class has the same layout",
        expected=Quantity("weights", "content"),
        actual=Quantity("module", "content"),
        source="pickle",
        consequence=_elsewhere(subject),
        fix="save the weights as safetensors for others; gqacheck.load_model() rebuilds the model without unpickling",
        severity=Severity.NOTE,
    )


def _elsewhere(subject: Subject) -> str:
    """What transformers 5 says of this pickle, as far as its layout tells."""
    modules = subject.checkpoint.modules
    gone = next(
        (m.short_class for m in modules.values() if m.short_class.endswith(("SdpaAttention", "FlashAttention2"))), None
    )
    if gone is not None:
        return (
            f"written by transformers 4.36 to 4.47: transformers 5 says `Can't get attribute '{printable(gone, 60)}'`"
        )
    attention = next((layer.attention for layer in subject.geometry.layers if layer.attention.module is not None), None)
    if attention is not None and attention.module is not None and f"{attention.module.path}.rotary_emb" in modules:
        return "written by transformers before 4.48: transformers 5 unpickles it and fails in its forward pass"
    return "torch.load needs weights_only=False, executes the pickle, and needs the transformers version that wrote it"


def shard_index(subject: Subject) -> Iterator[Violation]:
    """The weight index and the shards do not agree.

    What it checks
        That every shard of the index is there and readable, that every tensor is in the shard which the index
        names, that none is missing, unlisted or stored twice; and that total_size is the sum of the tensors
        (a warning).

    Why it matters
        Loaders go by the index. What it does not list is not loaded; what it lists and cannot find is made up.

    What you would see
        `MISSING … newly initialized` with random numbers in the layer, or an error that a shard does not exist.

    Fix
        Fetch the missing shards again, or write shards and index together with save_pretrained.

    Known misses
        A shard of the right names and another model's values.

    Source
        The index format of Hugging Face checkpoints; loading behaviour of transformers 5.23.
    """
    for defect in defects_of(subject, "shard-index"):
        yield from_defect(
            defect, consequence="loading fails, or goes on with newly initialized weights in place of the missing ones"
        )
    for defect in defects_of(subject, "shard-size"):
        yield from_defect(
            defect,
            consequence="tools that plan memory by total_size get it wrong; often the index is older than the shards",
            severity=Severity.WARNING,
        )


def container_ambiguous(subject: Subject) -> Iterator[Violation]:
    """Two readers could take different content from this file.

    What it checks
        Duplicate zip members, tensor names or JSON keys, a zip whose local headers and central directory disagree,
        storages declared twice with different sizes, bytes between the parts.

    Why it matters
        What was checked must be what runs. With two answers in one file the checker may read one and the loader
        the other.

    What you would see
        Nothing: both readers succeed.

    Fix
        Save the model again with torch.save or save_pretrained; do not trust a file that came like this.

    Known misses
        Ambiguities of formats that gqacheck refuses to read.

    Source
        Zip readers go by the central directory or by local headers; JSON readers keep the first or the last of two
        equal keys.
    """
    for defect in defects_of(subject, "ambiguous"):
        yield from_defect(defect, consequence="another reader may load other weights from the same bytes")


FILE_RULES: tuple[Rule, ...] = (
    Rule("GQA010", "unrecognised-global", Severity.WARNING, "shapes", unrecognised_global, _needs_pickle),
    Rule("GQA011", "pickled-module", Severity.NOTE, "shapes", pickled_module, _needs_pickle),
    Rule("GQA012", "storage-bounds", Severity.ERROR, "shapes", storage_bounds, _needs_file),
    Rule("GQA013", "oversized-storage", Severity.WARNING, "shapes", oversized_storage, needs_torch_storages),
    Rule("GQA014", "shard-index", Severity.ERROR, "shapes", shard_index, _needs_shards),
    Rule("GQA015", "container-ambiguous", Severity.ERROR, "shapes", container_ambiguous, _needs_file),
)
"""GQA010 to GQA015."""
