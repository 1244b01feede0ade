"""One weight file, whatever its container: identified by content, read, and told in one shape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gqacheck.checkpoint import ConfigInfo, Defect, ModuleInfo, TensorInfo, TokenizerInfo
from gqacheck.errors import NotACheckpoint
from gqacheck.formats import foreign
from gqacheck.formats.identify import FileKind, identify, name_zip
from gqacheck.formats.safetensors import read_safetensors
from gqacheck.formats.source import Source
from gqacheck.formats.torch_file import TorchFile
from gqacheck.formats.torch_legacy import read_torch_legacy
from gqacheck.formats.torch_zip import read_torch_zip
from gqacheck.formats.torch_zip_directory import read_directory
from gqacheck.text import printable


@dataclass(frozen=True, slots=True)
class Weights:
    """What one weight file holds. ``path`` as opened; ``size`` and ``bytes_read`` in bytes; the rest as Checkpoint."""

    path: str
    file_kind: FileKind
    kind: Literal["module", "state-dict"]
    tensors: Mapping[str, TensorInfo]
    size: int
    bytes_read: int
    modules: Mapping[str, ModuleInfo] = field(default_factory=dict)
    config: ConfigInfo | None = None
    generation_config: ConfigInfo | None = None
    tokenizer: TokenizerInfo | None = None
    globals: tuple[str, ...] = ()
    unwrapped: tuple[str, ...] = ()
    defects: tuple[Defect, ...] = ()
    ignored: tuple[str, ...] = ()


def read_weights(path: str) -> Weights:
    """The facts of the weight file at ``path``; nothing is executed and no weight is read.

    Raises ``NotACheckpoint`` when the file is something else, ``ReadError`` when it cannot be read.
    """
    with Source.open(path) as source:
        file_kind = identify(source)
        if file_kind is FileKind.SAFETENSORS:
            plain = read_safetensors(source)
            if not plain.tensors:
                raise NotACheckpoint(f"{printable(path)}: is a safetensors file without a single tensor")
            return Weights(
                path, file_kind, "state-dict", plain.tensors, source.size, source.bytes_read, defects=plain.defects
            )
        torch_file = _read_zip(source) if file_kind is FileKind.TORCH_ZIP else read_torch_legacy(source)
        if torch_file.kind == "other":
            raise NotACheckpoint(f"{printable(path)}: {_refuse_object(path, torch_file)}")
        return Weights(
            path,
            file_kind,
            torch_file.kind,
            torch_file.tensors,
            source.size,
            source.bytes_read,
            torch_file.modules,
            torch_file.config,
            torch_file.generation_config,
            torch_file.tokenizer,
            torch_file.globals,
            torch_file.unwrapped,
            torch_file.defects,
            torch_file.ignored,
        )


def _read_zip(source: Source) -> TorchFile:
    try:
        return read_torch_zip(source)
    except NotACheckpoint:
        names = tuple(read_directory(source).entries)
    raise NotACheckpoint(f"{printable(source.path)}: is {name_zip(names) if names else 'an empty zip archive'}")


def _refuse_object(path: str, torch_file: TorchFile) -> str:
    """Why an object that torch.save wrote is no model. What a shard belongs to shows only in its name."""
    name = os.path.basename(path)
    folder = os.path.dirname(path) or "."
    what = torch_file.description or "an object that holds no model"
    if name.endswith(".distcp"):
        return f"is one shard of {foreign.describe_dcp(folder)}"
    if "DeepSpeed" in what or "zero_pp_rank_" in name:
        return f"is one shard of {foreign.DEEPSPEED}"
    if name == "qmodel.pt":
        return "is a model quantised by HQQ in its own layout; check the model that it was made from"
    if ";" in what:
        return f"is {what}"
    return f"is {what}, not a model; give the model's own weight file or its folder"
