"""What is this file? Asked of its content, before anything else; a suffix is only ever a hint in a message.

``identify`` names the three containers that are read here and refuses everything else in one sentence: what it is
and, where one exists, the command that turns it into a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import Enum

from gqacheck.errors import NotACheckpoint, ReadError
from gqacheck.formats.safetensors import MAX_HEADER_BYTES
from gqacheck.formats.source import Source
from gqacheck.text import printable, printable_list

HEAD_BYTES = 512
"""Bytes looked at. A tar archive tells itself at byte 257."""

LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""LONG1 of torch's magic number, the first value of a legacy file."""


class FileKind(Enum):
    """The containers that are read."""

    TORCH_ZIP = "torch-zip"
    TORCH_LEGACY = "torch-legacy"
    SAFETENSORS = "safetensors"


_GGML = "an old llama.cpp file (GGML, from before GGUF); check the folder that it was converted from"

MAGICS: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"GGUF",
        "a GGUF file (llama.cpp); check the folder that it was converted from, or read it back with "
        "AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).save_pretrained(out)",
    ),
    (0, b"FUGG", "a big-endian GGUF file (llama.cpp); check the folder that it was converted from"),
    (0, b"lmgg", _GGML),
    (0, b"fmgg", _GGML),
    (0, b"tjgg", _GGML),
    (0, b"algg", _GGML),
    (0, b"\x93NUMPY", "a numpy array (.npy), one array and no model; check the checkpoint that it came from"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow weights); load it with transformers 4 and "
        "from_tf=True, and save it with save_pretrained"),
    (4, b"TFL3", "a TensorFlow Lite model; check the model that it was converted from"),
    (4, b"ET12", "an ExecuTorch program (.pte); check the model that it was exported from"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first: gunzip FILE, or tar xzf FILE for an archive"),
    (0, b"BZh", "compressed with bzip2; unpack it first: bunzip2 FILE, or tar xjf FILE for an archive"),
    (0, b"\xfd7zXZ\x00", "compressed with xz; unpack it first: unxz FILE, or tar xJf FILE for an archive"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstandard; unpack it first: unzstd FILE"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4; unpack it first: unlz4 FILE"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first: 7z x FILE"),
    (0, b"Rar!\x1a\x07", "a RAR archive; unpack it first: unrar x FILE"),
    (0, b"PAR1", "a Parquet table, data and no model"),
    (0, b"ARROW1", "an Arrow table, data and no model"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x89PNG\r\n", "a PNG image"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"MZ\x90\x00", "a Windows program"),
)  # fmt: skip
"""Offset, bytes, and what a file that has them is."""


def identify(source: Source) -> FileKind:
    """The container of ``source``, by its first bytes.

    Raises ``NotACheckpoint`` when the file is recognised as something that is not checked, ``ReadError`` when it is
    empty, zero-filled or unknown. A zip may still turn out to be no file of torch; its reader says so.
    """
    shown = printable(source.path)
    if source.size == 0:
        raise ReadError(f"{shown}: is empty (0 bytes): the download or the save did not finish; fetch or save it again")
    head = source.read(0, min(HEAD_BYTES, source.size))
    if head.startswith(b"PK\x03\x04"):
        return FileKind.TORCH_ZIP
    if head.startswith(b"PK\x05\x06"):
        raise NotACheckpoint(f"{shown}: is an empty zip archive; save it again")
    if LEGACY_MAGIC in head[:64] and head[:1] == b"\x80":
        return FileKind.TORCH_LEGACY
    for offset, magic, what in MAGICS:
        if head.startswith(magic, offset):
            raise NotACheckpoint(f"{shown}: is {what}")
    if _is_safetensors(head):
        return FileKind.SAFETENSORS
    if head[257:262] == b"ustar":
        raise NotACheckpoint(f"{shown}: is {_name_tar(head)}")
    said = describe_text(head)
    if said is not None:
        raise NotACheckpoint(f"{shown}: is {said}")
    if _is_onnx(head):
        raise NotACheckpoint(f"{shown}: is an ONNX model; check the checkpoint that it was exported from")
    if b"torch.distributed.checkpoint" in head:
        raise NotACheckpoint(
            f"{shown}: is the plan of a distributed checkpoint (.metadata); give its folder to see how it is joined"
        )
    if head[:1] == b"\x80" and len(head) > 2 and 1 <= head[1] <= 5:
        raise NotACheckpoint(
            f"{shown}: is a plain pickle that torch.save did not write; load it in the program that wrote it and "
            f"save the model with torch.save or save_pretrained"
        )
    if not any(head):
        raise ReadError(f"{shown}: {_judge_zeros(source)}; fetch or save it again")
    raise ReadError(
        f"{shown}: is no file of torch.save and no safetensors file (it begins with {head[:8].hex(' ')}); give a "
        f".bin, .pt, .pth, .safetensors or a model folder"
    )


def describe_text(head: bytes) -> str | None:
    """What a text file is that stands where a checkpoint, a config or a shard should be; None for binary data."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lowered = text[:64].lower()
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return f"a Git LFS pointer{_stated_size(text)}, not the file itself; fetch it: git lfs pull"
    if lowered.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (a login or error page saved in its place); download the file again"
    if lowered.startswith((b"<?xml", b"<error>")):
        return "an XML document (often the error answer of a storage server); download the file again"
    if text.startswith(b"{") and b'"error"' in text[:64]:
        return "an error answer of a server (JSON); download the file again"
    if text.startswith((b"{", b"[")):
        return "a JSON text; give the model folder or a weight file"
    sample = text[:256]
    if sample and sample.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in sample):
        return "a text file; give the model folder or a weight file"
    return None


def name_zip(names: Iterable[str]) -> str:
    """What a zip archive is that holds these entries and was not written by torch.save."""
    entries = tuple(names)
    ends = tuple(name.rpartition("/")[2] for name in entries)
    if entries and all(name.endswith(".npy") for name in entries):
        return "a numpy archive (.npz), arrays and no model; check the checkpoint that they came from"
    if "archive_format" in ends or any("/data/weights/" in name for name in entries):
        return "an exported program (.pt2 of torch.export); check the model that it was exported from"
    if "model.weights.h5" in ends:
        return "a Keras model; check the checkpoint that it came from"
    if "AndroidManifest.xml" in ends or "MANIFEST.MF" in ends:
        return "a program archive"
    inside = [name for name in entries if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
    if inside:
        return f"a zip archive with {printable_list(inside, 2)} inside; unpack it first: unzip FILE"
    return f"a zip archive that torch.save did not write (its first entry is {printable(entries[0], 60)})"


def _stated_size(pointer: bytes) -> str:
    for line in pointer.splitlines():
        if line.startswith(b"size ") and line[5:].isdigit() and len(line) < 25:
            return f" (to {int(line[5:]):,} bytes)"
    return ""


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then a JSON object. A length past the limit is left for the reader to refuse."""
    return len(head) > 8 and head[8:].lstrip(b" \t\r\n")[:1] == b"{" and _plausible_length(head)


def _plausible_length(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= MAX_HEADER_BYTES or (head[8:10] == b'{"' and length > 0)


def _is_onnx(head: bytes) -> bool:
    """A protobuf ModelProto: field 1 (ir_version) as a small number, then producer, domain, doc, graph or opset."""
    return len(head) > 4 and head[0] == 0x08 and 1 <= head[1] <= 32 and head[2] in b"\x12\x1a\x22\x2a\x32\x3a\x42"


def _name_tar(head: bytes) -> str:
    first = os.path.basename(head[:100].rstrip(b"\0").decode("utf-8", "replace").rstrip("/"))
    if first in ("sys_info", "pickle", "tensors", "storages"):
        return (
            "a tar file of torch 0.1; open it once with torch.load(FILE, weights_only=False) in an environment that "
            "you trust it with, and save it again with torch.save"
        )
    if first.endswith((".yaml", ".ckpt", "model_weights")):
        return "a NeMo archive (tar); export it to the Hugging Face layout with NeMo's own converter"
    return f"a tar archive (its first member is {printable(first, 60)}); unpack it first: tar xf FILE"


def _judge_zeros(source: Source) -> str:
    """Zeros throughout, as far as three samples tell, or only at the start."""
    size = source.size
    samples = (min(65536, size), 0), (min(4096, size), size // 2), (min(4096, size), max(0, size - 4096))
    if any(any(source.read(offset, min(n, size - offset))) for n, offset in samples):
        return "begins with zeros and is no known format; it was overwritten or is damaged"
    return f"is zero-filled ({size:,} bytes were set aside and never written)"
