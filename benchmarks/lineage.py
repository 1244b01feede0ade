"""``python -m benchmarks.lineage``: matching an 8B-shaped pair by its weights, beside a torch loop of cosines.

Real bytes on disk: layers of Llama-3-8B's shape with Gaussian bfloat16 weights, and a child with six of eight KV groups
and three quarters of the channels. Only a few layers are written; what 32 would cost is extrapolated from the layers
alone and said to be. Both files are dropped from the page cache before every run, so that the disk is part of it.
"""

from __future__ import annotations

import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import Run, run_once

LAYERS, FULL_DEPTH = 2, 32
HIDDEN, HEADS, KV, DIM, WIDE, VOCAB = 4096, 32, 8, 128, 14336, 2048
KEPT_KV, KEPT_WIDE = (0, 2, 3, 4, 6, 7), range(14336 * 3 // 4)
PEER = """
import sys, torch
from safetensors import safe_open

def unit(x):
    return torch.nn.functional.normalize(x.float(), dim=1)

paths = [folder + "/model.safetensors" for folder in sys.argv[1:]]
with safe_open(paths[0], "pt") as child, safe_open(paths[1], "pt") as base:
    names = [n for n in child.keys() if "_proj" in n]
    for name in names:
        a, b = child.get_tensor(name), base.get_tensor(name)
        if "o_proj" in name or "down_proj" in name:
            a, b = a.T, b.T
        if "self_attn" in name:
            a, b = a.reshape(-1, 128 * 4096), b.reshape(-1, 128 * 4096)
        b = unit(b)
        found = torch.cat([(unit(part) @ b.T).argmax(1) for part in a.split(512)])
"""


def main() -> int:
    """Write the pair, measure each command from a cold cache, print one table; 0."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="gqacheck-bench-") as scratch:
        folder = Path(scratch)
        # in a process of its own, so that the one that measures stays small
        subprocess.run([sys.executable, "-m", "benchmarks.lineage", "--write", str(folder)], check=True)
        pair = {"parent": folder / "parent", "child": folder / "child", "tuned": folder / "tuned"}
        sizes = {name: sum(f.stat().st_size for f in path.iterdir()) for name, path in pair.items()}
        print(", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items()))
        both = sizes["parent"] + sizes["child"]
        gqacheck = [sys.executable, "-m", "gqacheck", "--format", "json", "--base", str(pair["parent"])]
        _table("bit-identical child", [*gqacheck, str(pair["child"])], pair["child"], pair["parent"], rounds, both)
        _table("fine-tuned child", [*gqacheck, str(pair["tuned"])], pair["tuned"], pair["parent"], rounds, both)
    return 0


def _table(told: str, command: list[str], child: Path, parent: Path, rounds: int, both: int) -> None:
    peer = [sys.executable, "-c", PEER, str(child), str(parent)]
    runs: dict[str, list[Run]] = {"gqacheck": [], "torch cosines": []}
    for _ in range(rounds):
        for name, words in (("gqacheck", command), ("torch cosines", peer)):
            _forget(child, parent)
            runs[name].append(run_once(words))
    lineage = json.loads(runs["gqacheck"][0].output)["checkpoints"][0]["lineage"]
    seconds = {name: sorted(run.seconds for run in found)[len(found) // 2] for name, found in runs.items()}
    peaks = {name: max(run.peak_mib for run in found) for name, found in runs.items()}
    print(f"\n{told}: {lineage['relation']}, {lineage['method']}; exit {runs['gqacheck'][0].code}")
    print(
        f"  gqacheck       {seconds['gqacheck']:7.2f} s, {peaks['gqacheck']:6.0f} MiB, read "
        f"{lineage['bytes_read'] / 1e6:.0f} MB = {100 * lineage['bytes_read'] / both:.2f} % of both; "
        f"{seconds['gqacheck'] * FULL_DEPTH / LAYERS:.0f} s extrapolated to {FULL_DEPTH} layers"
    )
    print(
        f"  torch cosines  {seconds['torch cosines']:7.2f} s, {peaks['torch cosines']:6.0f} MiB, read all; "
        f"{seconds['torch cosines'] / seconds['gqacheck']:.1f}x the time; "
        f"{seconds['torch cosines'] * FULL_DEPTH / LAYERS:.0f} s extrapolated"
    )


def _forget(*folders: Path) -> None:
    """Drop the folders' files from the page cache."""
    for folder in folders:
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def write_pair(folder: Path) -> None:
    """The parent, its child, and the child with one per cent of noise, as folders of safetensors."""
    import torch

    generator = torch.Generator().manual_seed(8)
    q = [head * HEADS // KV + n for head in KEPT_KV for n in range(HEADS // KV)]
    rows = {"q_proj": _lines(q), "k_proj": _lines(KEPT_KV), "v_proj": _lines(KEPT_KV)}
    parent, child, tuned = (_Folder(folder / name) for name in ("parent", "child", "tuned"))
    for name, shape in _shapes():
        weight = (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
        kind = name.split(".")[-2]
        kept = weight
        if kind in rows:
            kept = weight[rows[kind]]
        elif kind == "o_proj":
            kept = weight[:, rows["q_proj"]]
        elif kind in ("gate_proj", "up_proj"):
            kept = weight[KEPT_WIDE.start : KEPT_WIDE.stop]
        elif kind == "down_proj":
            kept = weight[:, KEPT_WIDE.start : KEPT_WIDE.stop]
        noise = torch.randn(kept.shape, generator=generator) * 0.0002
        parent.add(name, weight)
        child.add(name, kept)
        tuned.add(name, (kept + noise).to(torch.bfloat16))
    parent.close(HEADS, KV, WIDE)
    child.close(len(q), len(KEPT_KV), len(KEPT_WIDE))
    tuned.close(len(q), len(KEPT_KV), len(KEPT_WIDE))


def _lines(heads: Sequence[int]) -> list[int]:
    return [head * DIM + line for head in heads for line in range(DIM)]


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        for name, rows in (("q_proj", HEADS * DIM), ("k_proj", KV * DIM), ("v_proj", KV * DIM)):
            yield f"{layer}.self_attn.{name}.weight", (rows, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", (HIDDEN, HEADS * DIM)
        yield f"{layer}.mlp.gate_proj.weight", (WIDE, HIDDEN)
        yield f"{layer}.mlp.up_proj.weight", (WIDE, HIDDEN)
        yield f"{layer}.mlp.down_proj.weight", (HIDDEN, WIDE)
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


class _Folder:
    """Writes tensors one after the other; the header comes first in the file, so the bytes wait beside it."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path, self.header, self.position = path, {}, 0  # type: ignore[var-annotated]
        self.data = open(path / "data", "w+b")  # noqa: SIM115

    def add(self, name: str, tensor: object) -> None:
        import torch

        assert isinstance(tensor, torch.Tensor)
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        self.header[name] = {
            "dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [self.position, self.position + len(data)]
        }  # fmt: skip
        self.position += len(data)
        self.data.write(data)

    def close(self, heads: int, kv: int, wide: int) -> None:
        text = json.dumps(self.header).encode()
        text += b" " * (-len(text) % 8)
        self.data.seek(0)
        with open(self.path / "model.safetensors", "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            while block := self.data.read(1 << 24):
                out.write(block)
        self.data.close()
        os.unlink(self.path / "data")
        config = {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None,
            "hidden_size": HIDDEN, "head_dim": DIM,
            "intermediate_size": wide, "num_hidden_layers": LAYERS, "num_attention_heads": heads,
            "num_key_value_heads": kv, "vocab_size": VOCAB, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
        }  # fmt: skip
        (self.path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write_pair(Path(sys.argv[-1]))
    else:
        sys.exit(main())
