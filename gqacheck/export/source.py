"""The checkpoint that is exported: whether its tensors can be trusted, and whether it stays as it is meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from gqacheck.checkpoint import Checkpoint, TensorInfo
from gqacheck.export.facts import CannotExport
from gqacheck.geometry.config import is_true
from gqacheck.geometry.facts import Geometry
from gqacheck.geometry.head_dim import doubt
from gqacheck.geometry.names import is_adapter
from gqacheck.report.words import layers_words
from gqacheck.result import CheckpointReport
from gqacheck.rules.rule import Finding, Severity
from gqacheck.text import printable, printable_list

ABOUT_TENSORS = frozenset(
    ("GQA012", "GQA014", "GQA015", "GQA101", "GQA102", "GQA103", "GQA104", "GQA106", "GQA107", "GQA109", "GQA110",
     "GQA111", "GQA301", "GQA302", "GQA303", "GQA304", "GQA409", "GQA410")
)  # fmt: skip
"""Rules whose errors mean that tensors are missing, of another shape or of uncertain content: no folder that loads can
be made of them without making something up."""
ABOUT_MEANING = frozenset(("GQA105", "GQA010"))
"""Rules whose errors an export would hide: the folder would say what is stored, and nobody would ask any more."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Size, time of change and number of every file that was read."""

    files: tuple[tuple[str, int, int, int], ...]

    def changed(self) -> str:
        """The name of the first file that is not as it was, "" when all are."""
        for path, *facts in self.files:
            if _facts(path) != facts:
                return os.path.basename(path)
        return ""


def fingerprint_unread(path: str) -> Fingerprint:
    """The file ``path``, or the files in the folder: what is known to be read before anything is."""
    try:
        paths = [entry.path for entry in os.scandir(path) if entry.is_file()] if os.path.isdir(path) else [path]
    except OSError:
        paths = []  # whoever reads the folder says why not
    return Fingerprint(tuple((each, *_facts(each)) for each in paths))  # type: ignore[misc]


def fingerprint(checkpoint: Checkpoint) -> Fingerprint:
    """The files that hold the tensors, and what lies beside them in a folder."""
    paths = {info.storage.file for info in checkpoint.tensors.values() if info.storage is not None}
    if os.path.isdir(checkpoint.path):
        beside = (os.path.join(checkpoint.path, name) for name in os.listdir(checkpoint.path))
        paths |= {path for path in beside if os.path.isfile(path) and path.endswith(".json")}
    if checkpoint.tokenizer is not None and os.path.isfile(checkpoint.tokenizer.file):
        paths.add(checkpoint.tokenizer.file)
    return Fingerprint(tuple((path, *_facts(path)) for path in sorted(paths)))  # type: ignore[misc]


def _facts(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except OSError:
        return [-1, -1, -1]
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def refuse_unsound(before: CheckpointReport, *, head_dim_given: bool, force: bool) -> None:
    """Nothing, when a folder that loads can be made of the checkpoint.

    head_dim_given: the caller says how wide a head is.

    Raises:
        CannotExport: with the first reason why not.
    """
    checkpoint = before.checkpoint
    assert checkpoint is not None
    if checkpoint.quantization is not None:
        raise CannotExport(
            f"the weights are quantised ({checkpoint.quantization}): export the checkpoint before it is quantised, or "
            "dequantise it first"
        )
    adapters = [name for name in checkpoint.tensors if is_adapter(name)]
    if adapters:
        raise CannotExport(
            f"{len(adapters):,} tensors of an adapter are stored unmerged ({printable_list(adapters, 2)}): merge them "
            "first with model = model.merge_and_unload()"
        )
    errors = [finding for finding in before.findings if finding.severity is Severity.ERROR]
    fatal = [finding for finding in errors if finding.code in ABOUT_TENSORS or _lost(finding, before.geometry)]
    if fatal:
        raise CannotExport(f"{_told(fatal)}; an export would have to make something up: repair the checkpoint first")
    unsure = "" if head_dim_given or before.geometry is None else doubt(before.geometry)
    if unsure:
        raise CannotExport(f"{unsure}; every head count hangs on it: say which it is with --head-dim N")
    if checkpoint.config is None:
        raise CannotExport("the checkpoint carries no config, and an export needs one: give it with --config FILE")
    hidden = [finding for finding in errors if finding.code in ABOUT_MEANING]
    if hidden and not force:
        raise CannotExport(f"{_told(hidden)}; if that is meant, --force exports it as it is")


def _lost(finding: Finding, geometry: Geometry | None) -> bool:
    """Whether a finding that is mostly about the config means here that tensors are missing or of another length."""
    if finding.code == "GQA108":
        return (
            finding.expected is None or finding.expected.value != 0
        )  # 0: one that the family never has, and it is there
    if finding.code == "GQA305":
        return geometry is None or not _experts_agree(geometry)
    if finding.code == "GQA408" and geometry is not None and geometry.embedding is not None:
        return geometry.lm_head is not None and geometry.lm_head.rows != geometry.embedding.rows
    return False


def _experts_agree(geometry: Geometry) -> bool:
    """Whether every router has a row for each stored expert, in all layers as many: the config alone is stale."""
    moe = [layer.mlp for layer in geometry.layers if layer.mlp.kind == "moe"]
    counts = {mlp.n_experts_stored for mlp in moe}
    return len(counts) == 1 and all(mlp.router is not None and mlp.router.rows in counts for mlp in moe)


def _told(findings: list[Finding]) -> str:
    shown = [f"{finding.code} {printable(finding.message, 300)}{_where(finding)}" for finding in findings[:_SHOWN]]
    more = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return "; ".join(shown) + more


def _where(finding: Finding) -> str:
    return f" ({layers_words(finding.layers)})" if finding.layers else ""


def tied_to_embedding(checkpoint: Checkpoint, geometry: Geometry) -> bool:
    """Whether lm_head is the embedding: not stored, the same bytes of the file, or equal where the config says so.

    Raises:
        CannotExport: no lm_head is stored and nothing ties it.
        ReadError: the bytes to compare are not there.
    """
    from gqacheck.runtime.weights import same_bytes

    if geometry.embedding is None:
        raise CannotExport("the token embedding is not in the file")
    embedding = checkpoint.tensors[geometry.embedding.tensor]
    if geometry.lm_head is None:
        if not geometry.lm_head_tied:
            raise CannotExport("no lm_head is stored and the config does not tie it to the embedding")
        return True
    head = checkpoint.tensors[geometry.lm_head.tensor]
    if same_bytes(head, embedding):
        return True
    stated = is_true(geometry.config, "tie_word_embeddings", geometry.family.ties_by_default)
    return stated and head.shape == embedding.shape and head.dtype == embedding.dtype and _equal(head, embedding)


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors of one shape hold the same, read a block at a time."""
    import torch

    from gqacheck.export.content import Stored
    from gqacheck.runtime.weights import WeightReader

    with WeightReader() as first, WeightReader() as second:
        blocks: Iterable[tuple[torch.Tensor, torch.Tensor]] = zip(
            Stored(one).blocks(first), Stored(other).blocks(second), strict=True
        )
        return all(torch.equal(a, b) for a, b in blocks)
