"""What is this file? Every kind that DESIGN 4a names, by content, under a misleading suffix."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from gqacheck.checkpoint import Container
from gqacheck.errors import ReadError
from gqacheck.formats import open_checkpoint
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import tensor, write_safetensors, write_torch_legacy, write_torch_zip

REAL = Path(__file__).parent / "real"


def sketch() -> Sketch:
    return sketch_llama(n_layers=2, n_q_heads=12, n_kv_heads=3)


def refuse(path: Path | str) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(ReadError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.mark.parametrize(
    ("writer", "kind", "container"),
    [
        ("write_module", "torch-zip-module", Container.MODULE),
        ("write_state_dict", "torch-zip-state-dict", Container.STATE_DICT),
        ("write_legacy", "torch-legacy-state-dict", Container.STATE_DICT),
    ],
)
@pytest.mark.parametrize("suffix", ["bin", "safetensors", "txt", "gguf"])
def test_file_of_torch_is_known_by_content_not_suffix(
    writer: str, kind: str, container: Container, suffix: str, tmp_path: Path
) -> None:
    path = getattr(sketch(), writer)(tmp_path / f"file.{suffix}")
    found = open_checkpoint(path)
    assert (found.format, found.container) == (kind, container)
    assert found.tensors["model.layers.1.self_attn.q_proj.weight"].shape[0] == 12 * sketch().head_dim


def test_safetensors_named_bin_is_known_by_content(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "pytorch_model.bin", sketch().tensors)
    found = open_checkpoint(path)
    assert (found.format, found.config, found.ignored) == ("safetensors", None, ())


def test_bytes_read_are_a_fraction_of_the_file_and_counted(tmp_path: Path) -> None:
    found = open_checkpoint(write_safetensors(tmp_path / "a", {"w": tensor((1000, 1000))}))
    assert found.file_bytes == os.path.getsize(tmp_path / "a")
    assert 0 < found.bytes_read < 2000
    assert found.seconds > 0
    assert found.path == str(tmp_path / "a")
    assert found.root == str(tmp_path)


def _tar(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


def _zip(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13267888128\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (bytes(70_000), "zero-filled (70,000 bytes"),
        (bytes(7), "zero-filled (7 bytes"),
        (bytes(70_000) + b"x" * 10, "begins with zeros"),
        (LFS, "a Git LFS pointer (to 13,267,888,128 bytes), not the file itself; fetch it: git lfs pull"),
        (LFS.replace(b"size ", b"size x"), "a Git LFS pointer, not the file itself"),
        (LFS.replace(b"size ", b"sizes"), "a Git LFS pointer, not the file itself"),
        (LFS.replace(b"size ", b"size " + b"1" * 30), "a Git LFS pointer, not the file itself"),
        (b"\n <!DOCTYPE html>\n<html>", "an HTML page"),
        (b"<html><body>Sign in</body>", "an HTML page"),
        (b'<?xml version="1.0"?><Error>', "an XML document"),
        (b'{"error":"Repository not found"}', "an error answer of a server"),
        (b'{"model_type": "llama"}', "a JSON text"),
        (b'["error"]', "a JSON text"),
        (b"   ", "it begins with 20 20 20"),
        (b"hello, this is a note\n", "a text file"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file (llama.cpp)"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "a numpy array"),
        (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
        (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
        (gzip.compress(b"x" * 100, mtime=0), "compressed with gzip; unpack it first"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"\xfd7zXZ\x00\x00", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed with zstandard"),
        (_tar("sys_info", "pickle", "tensors"), "a tar file of torch 0.1"),
        (_tar("model_config.yaml", "model_weights.ckpt"), "a NeMo archive"),
        (_tar("run\x1b[31m/a"), "a tar archive"),
        (_zip("x.npy", "y.npy"), "a numpy archive (.npz)"),
        (_zip("m/archive_format", "m/models/model.json"), "an exported program"),
        (_zip("m/data/weights/weight_0", "m/version"), "an exported program"),
        (_zip("META-INF/MANIFEST.MF", "a.class"), "a program archive"),
        (_zip("AndroidManifest.xml", "classes.dex"), "a program archive"),
        (_zip("config.json", "model.weights.h5"), "a Keras model"),
        (_zip("x.npy", "readme.txt"), "a zip archive that torch.save did not write"),
        (_zip("m/config.json", "m/model.safetensors"), "m/model.safetensors inside; unpack it first"),
        (_zip("word/document.xml"), "a zip archive that torch.save did not write"),
        (_zip(), "empty zip archive"),
        (b"PK\x03\x04 and no more", "zip"),
        (b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "a plain pickle"),
        (b"\x80\x05}.", "a plain pickle"),
        (b"\x80\x01}.", "a plain pickle"),
        (b"\x80\x06}.", "it begins with 80 06"),
        (b"\x80\x00}.", "it begins with 80 00"),
        (b"\x81\x04}.", "it begins with 81 04"),
        (b"\x90\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "it begins with 90 02"),
        (b"\x08\x0e\x12\x07pytorch:7", "an ONNX model"),
        (b"\xde\xad\xbe\xef" * 8, "it begins with de ad be ef"),
        (b"\x7fELF\x02\x01\x01", "a program (ELF)"),
    ],
)
def test_file_of_another_kind_is_named_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    assert said in refuse(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x00\x12\x07pytorch",  # an ONNX ir_version of 0
        b"\x08\x21\x12\x07pytorch",  # of 33
        b"\x09\x0e\x12\x07pytorch",  # no varint
        b"\x08\x0e\x13\x07pytorch",  # no field that follows it
        b"\x08\x0e\x12\x07",
        (1).to_bytes(8, "little") + b"{",
        (50).to_bytes(8, "little") + b"[1]" + bytes(60),
        (2**40).to_bytes(8, "little") + b"{ }",
        (0).to_bytes(8, "little") + b'{"a',
        (2).to_bytes(8, "little"),
    ],
)
def test_file_nearly_of_a_kind_is_not_called_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert "begins with" in refuse(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((2).to_bytes(8, "little") + b"{}", "without a single tensor"),
        ((9).to_bytes(8, "little") + b" \t\r\n{  }x", "is not JSON"),
        ((100_000_000).to_bytes(8, "little") + b"{ }", "is cut short"),
        ((2**40).to_bytes(8, "little") + b'{"', "claims a header of 1,099,511,627,776 bytes"),
        ((1).to_bytes(8, "little") + b'{"', "header cannot be read"),
    ],
)
def test_file_that_begins_like_safetensors_is_judged_as_one(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert said in refuse(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny.gguf", "a GGUF file (llama.cpp); check the folder"),
        ("plain.onnx", "an ONNX model; check the checkpoint"),
        ("exported.onnx", "an ONNX model; check the checkpoint"),
        ("hqq", "quantised by HQQ in its own layout"),
        ("hqq/qmodel.pt", "quantised by HQQ in its own layout"),
    ],
)
def test_file_written_by_the_tool_itself_is_named(name: str, said: str) -> None:
    assert said in refuse(REAL / name)


@pytest.mark.parametrize("truncated_at", [1, 8, 9, 100, 1000])
def test_truncated_files_are_one_line(truncated_at: int, tmp_path: Path) -> None:
    sketch().write_module(tmp_path / "m.bin")
    sketch().write_legacy(tmp_path / "l.bin")
    sketch().write_folder(tmp_path / "f")
    for source in ("m.bin", "l.bin", "f/model.safetensors"):
        cut = tmp_path / "cut"
        cut.write_bytes((tmp_path / source).read_bytes()[:truncated_at])
        refuse(cut)


def test_path_that_is_no_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere\x1b[31m")
    assert "named pipe" in refuse(tmp_path / "pipe")
    assert "symbolic link" in refuse(tmp_path / "loop")
    assert "link to nowhere\\x1b[31m, which does not exist" in refuse(tmp_path / "dangling")
    assert "character device" in refuse("/dev/zero")
    assert "no such file" in refuse(tmp_path / "missing.bin")
    assert "no path that the system accepts" in refuse("a\0b")
    assert "the path is empty" in refuse("")
    assert "URLs are not read" in refuse("https://example.org/model.bin")
    assert refuse(str(tmp_path / ("x" * 3000)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"GGUF", b"\x80\x02" + bytes(20), bytes(9), b"x" * 9])
def test_path_with_control_characters_is_never_raw(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n\u202e.bin"
    path.write_bytes(content)
    refuse(path)
    refuse(str(path) + "\x1b")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ({"state": {}, "param_groups": []}, "optimizer.pt", "an optimizer state, not a model"),
        ({"base_lrs": [0.1], "last_epoch": 1, "_step_count": 2}, "scheduler.pt", "a learning-rate scheduler state"),
        (
            {"optimizer_state_dict": {"zero_stage": 3, "partition_count": 2}, "ds_config": {}, "ds_version": "0.15"},
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "a DeepSpeed checkpoint (ZeRO shards); join them first",
        ),
        ([1, 2, 3], "x.pt", "a list of 3"),
    ],
)
def test_object_that_is_no_model_is_named(content: object, name: str, said: str, tmp_path: Path) -> None:
    assert said in refuse(write_torch_zip(tmp_path / name, content))


def rename(pairs: dict[str, str]) -> Sketch:
    """The sketch with parts of its names replaced."""
    made = sketch()
    for old, new in pairs.items():
        made.tensors = {name.replace(old, new): value for name, value in made.tensors.items()}
    return made


META = {
    "model.embed_tokens": "tok_embeddings", "model.layers": "layers", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.norm": "norm",
    "lm_head": "output",
}  # fmt: skip
TORCHTUNE = {
    "model.embed_tokens": "tok_embeddings", "model.layers": "layers", "self_attn.o_proj": "attn.output_proj",
    "self_attn.": "attn.", "mlp.gate_proj": "mlp.w1", "mlp.down_proj": "mlp.w2", "mlp.up_proj": "mlp.w3",
}  # fmt: skip
LITGPT = {
    "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "self_attn.q_proj": "attn.qkv",
    "self_attn.o_proj": "attn.proj", "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (META, "Meta's own layout (consolidated, layers.N.attention.wq); convert it with transformers' script"),
        (TORCHTUNE, "a torchtune checkpoint"),
        (LITGPT, "convert it: litgpt convert_from_litgpt FOLDER OUT"),
        (LITGPT | {"attn.qkv": "attn.attn"}, "a LitGPT checkpoint"),
        (
            {"model.layers": "decoder.layers", "self_attn.q_proj": "self_attention.linear_qkv"},
            "a Megatron Core checkpoint",
        ),
        ({"model.layers": "blk", "self_attn.q_proj": "attn_q"}, "llama.cpp's names"),
    ],
)
def test_layout_of_another_tool_is_named_with_its_converter(names: dict[str, str], said: str, tmp_path: Path) -> None:
    made = rename(names)
    assert said in refuse(made.write_state_dict(tmp_path / "a.pth"))
    assert said in refuse(write_safetensors(tmp_path / "b.safetensors", made.tensors))


@pytest.mark.parametrize(
    "names",
    [
        {"self_attn.q_proj": "attention.wqkv", "mlp.gate_proj": "feed_forward.w1"},  # InternLM2
        {"model.layers": "transformer.h", "self_attn.": "attn."},  # GPT-J
        {"model.layers": "transformer.h", "self_attn.q_proj": "attn.c_attn"},  # GPT-2, Qwen
        {"model.layers": "model.decoder.layers"},  # OPT
        {"self_attn.": "self_attention.", "q_proj": "query_key_value"},  # Falcon
        {"model.layers.1.self_attn.": "vision_tower.layers.1.attn."},  # a tower with torchtune's names
        {"model.layers.1.self_attn.q_proj": "vision_encoder.layers.1.attention.wq"},  # a tower with Meta's
    ],
)
def test_layout_nearly_of_another_tool_is_checked(names: dict[str, str], tmp_path: Path) -> None:
    found = open_checkpoint(write_safetensors(tmp_path / "b.safetensors", rename(names).tensors))
    assert found.container is Container.STATE_DICT


def test_mistral_consolidated_is_told_from_metas(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "consolidated.safetensors", rename(META).tensors)  # and no tekken.json
    (tmp_path / "params.json").write_text("{}")
    message = refuse(tmp_path)
    assert "Mistral's own layout" in message
    assert "convert_mistral_weights_to_hf.py" in message
    (tmp_path / "consolidated.safetensors").rename(tmp_path / "weights.safetensors")
    assert "convert_llama_weights_to_hf.py" in refuse(tmp_path)
    (tmp_path / "tekken.json").write_text("{}")
    assert "convert_mistral_weights_to_hf.py" in refuse(tmp_path)
    write_safetensors(tmp_path / "weights.safetensors", rename(LITGPT).tensors)
    assert "litgpt convert_from_litgpt" in refuse(tmp_path)


def test_meta_folder_is_named_by_its_first_part(tmp_path: Path) -> None:
    for part in range(2):
        rename(META).write_state_dict(tmp_path / f"consolidated.0{part}.pth")
    assert "convert_llama_weights_to_hf.py" in refuse(tmp_path)


def test_zero3_placeholders_are_named_once(tmp_path: Path) -> None:
    made = sketch()
    for name in made.tensors:
        made.set_tensor(name, (0,))
    for path in (made.write_state_dict(tmp_path / "pytorch_model.bin"), made.write_folder(tmp_path / "f")):
        message = refuse(path)
        assert f"holds {len(made.tensors)} of {len(made.tensors)} tensors as torch.Size([0])" in message
        assert "zero_to_fp32.py" in message


def test_zero3_one_empty_tensor_is_left_to_the_rules(tmp_path: Path) -> None:
    made = sketch()
    made.set_tensor("model.layers.0.self_attn.q_proj.weight", (0,))
    assert open_checkpoint(made.write_state_dict(tmp_path / "a.bin")).format == "torch-zip-state-dict"


def test_zero3_half_of_the_tensors_is_left_to_the_rules(tmp_path: Path) -> None:
    names = [f"layers.{number}.weight" for number in range(4)]
    half = {name: tensor((0,) if number < 2 else (2,)) for number, name in enumerate(names)}
    assert open_checkpoint(write_safetensors(tmp_path / "a", half)).tensors[names[0]].shape == (0,)
    assert "torch.Size([0])" in refuse(write_safetensors(tmp_path / "a", half | {names[2]: tensor((0,))}))


def test_deepspeed_model_states_with_whole_weights_are_checked(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "mp_rank_00_model_states.pt", {"module": sketch().state_dict(), "ds_config": {}})
    assert open_checkpoint(path).unwrapped == ("module",)


def test_adapter_alone_is_named_with_its_base(tmp_path: Path) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{stem}.lora_A.weight": tensor((2, 48)), f"{stem}.lora_B.weight": tensor((48, 2))}
    write_safetensors(tmp_path / "adapter_model.safetensors", adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta/\x1b[31mLlama"}))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        message = refuse(path)
        assert "an adapter alone for meta/\\x1b[31mLlama" in message
        assert "merge_and_unload" in message
    (tmp_path / "alone").mkdir()
    assert "an adapter alone, not a model" in refuse(write_torch_legacy(tmp_path / "alone/lora.bin", dict(adapter)))


def test_adapter_on_its_base_is_checked(tmp_path: Path) -> None:
    made = sketch()
    made.set_tensor("model.layers.0.self_attn.q_proj.lora_A.default.weight", (2, 48))
    assert open_checkpoint(made.write_state_dict(tmp_path / "a.bin")).container is Container.STATE_DICT


def test_safetensors_without_a_tensor_is_named(tmp_path: Path) -> None:
    assert "without a single tensor" in refuse(write_safetensors(tmp_path / "a", {}))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bitsandbytes-nf4", "bitsandbytes"),
        ("bitsandbytes-int8", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
        ("torchao-int8", "torchao"),
    ],
)
def test_quantised_folder_written_by_the_tool_itself_is_recognised(name: str, method: str, tmp_path: Path) -> None:
    found = open_checkpoint(REAL / name)
    assert (found.format, found.quantization, found.defects) == ("folder-safetensors", method, ())
    alone = tmp_path / "model.safetensors"  # without its config, the names alone must tell
    alone.write_bytes((REAL / name / "model.safetensors").read_bytes())
    assert open_checkpoint(alone).quantization == (method if method != "torchao" else "unknown")


PACKED = {
    "gptq": {"qweight": ((6, 48), "int32"), "qzeros": ((1, 6), "int32"), "scales": ((1, 48), "float16"),
             "g_idx": ((48,), "int32")},
    "awq": {"qweight": ((48, 6), "int32"), "qzeros": ((1, 6), "int32"), "scales": ((1, 48), "float16")},
    "fp8": {"weight": ((48, 48), "int8"), "weight_scale_inv": ((1, 1), "float32")},
    "hqq": {"W_q": ((48, 24), "uint8"), "scale": ((1, 48), "float16"), "zero": ((1, 48), "float16")},
    "mxfp4": {"weight_blocks": ((8, 48, 3, 16), "uint8"), "weight_scales": ((8, 48, 3), "uint8")},
    "torch-quantized": {"scale": ((), "float32"), "zero_point": ((), "int64")},
    "unknown": {"weight": ((48, 24), "uint8")},
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(PACKED))
def test_quantised_layout_is_recognised_by_its_companions(method: str, tmp_path: Path) -> None:
    made = sketch()
    del made.tensors["model.layers.0.self_attn.q_proj.weight"]
    for suffix, (shape, dtype) in PACKED[method].items():
        made.set_tensor(f"model.layers.0.self_attn.q_proj.{suffix}", shape, dtype)
    assert open_checkpoint(write_safetensors(tmp_path / "a", made.tensors)).quantization == method


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("self_attn.sinks", (12,), "float16"),
        ("self_attn.conv_weight_norm", (12, 4), "float16"),
        ("self_attn.position_ids", (1, 512), "int64"),
        ("self_attn.bucket_blocks", (4, 4), "float16"),
        ("self_attn.counter.weight", (12,), "int64"),
        ("self_attn.weight_scaled", (12,), "float16"),
    ],
)
def test_dense_layout_with_unusual_tensors_is_not_called_quantised(
    name: str, shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    made = sketch()
    made.set_tensor(f"model.layers.0.{name}", shape, dtype)
    assert open_checkpoint(write_safetensors(tmp_path / "a", made.tensors)).quantization is None


@pytest.mark.parametrize("claimed", [True, False])
def test_weights_in_8_bit_floats_are_packed_only_where_the_config_says_so(claimed: bool, tmp_path: Path) -> None:
    text = b'{"lm_head.weight":{"dtype":"F8_E4M3","shape":[4,4],"data_offsets":[0,16]}}'
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}' if claimed else "{}")
    assert open_checkpoint(tmp_path).quantization == ("fp8" if claimed else None)


@pytest.mark.parametrize(
    ("section", "method"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"bits": 4}, "unknown"),
        ({"quant_method": "\x1b[31m"}, "\\x1b[31m"),
        ("gptq", "awq"),
        (None, "awq"),
    ],
)
def test_quantised_method_is_the_configs_word_where_weights_are_packed(
    section: object, method: str, tmp_path: Path
) -> None:
    made = sketch()
    made.set_tensor("model.layers.0.self_attn.q_proj.qweight", (48, 6), "int32")
    made.config["quantization_config"] = section
    assert open_checkpoint(made.write_folder(tmp_path)).quantization == method


def test_quantised_config_on_dense_weights_is_told_and_checked(tmp_path: Path) -> None:
    made = sketch()
    made.config["quantization_config"] = {"quant_method": "fp8"}
    found = open_checkpoint(made.write_folder(tmp_path))
    assert found.quantization is None
    assert any("names the quantisation method fp8, but the weights are stored dense" in note for note in found.ignored)
    found = open_checkpoint(tmp_path / "model.safetensors")
    assert found.ignored == (
        "config.json beside the file names the quantisation method fp8, but the weights are stored dense",
    )


def test_relative_paths_are_read_beside_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sketch().write_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = open_checkpoint("model.safetensors")
    assert (found.root, found.config is not None) == (".", True)
    assert open_checkpoint(".").format == "folder-safetensors"
    assert "config.json: is a JSON text; give the model folder" in refuse("config.json")
    write_safetensors("weights.index.safetensors", sketch().tensors)
    assert open_checkpoint("weights.index.safetensors").format == "safetensors"
    write_torch_zip("__0_0.distcp", [1])
    assert "dcp_to_torch . OUT.pt" in refuse("__0_0.distcp")
    write_torch_zip("zero_pp_rank_0_mp_rank_00_model_states.pt", {"buffer_names": []})
    assert "a DeepSpeed checkpoint (ZeRO shards)" in refuse("zero_pp_rank_0_mp_rank_00_model_states.pt")
