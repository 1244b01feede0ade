"""Writes the files of this folder with the tools that own their formats; run it where those are installed.

    pip install gguf onnx bitsandbytes compressed-tensors torchao hqq transformers
    python tests/static/formats/real/make.py

Each comes from one tiny Llama (12 query heads, 3 KV heads, one layer), so that the static tests can look at real
bytes without torch. Nothing here is random but the weights, and no test looks at those.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def make_gguf(out: Path) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(str(out / "tiny.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", numpy.zeros((4, 4), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_onnx(out: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "graph",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), out / "plain.onnx")
    onnx.save(helper.make_model(graph, producer_name="pytorch", producer_version="2.13"), out / "exported.onnx")


def make_quantised(out: Path) -> None:
    import torch
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=12,
        num_key_value_heads=3, max_position_embeddings=32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as base:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)

        def save(name: str, **options: object) -> None:
            LlamaForCausalLM.from_pretrained(base, device_map="cpu", **options).save_pretrained(out / name)

        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        save("bitsandbytes-nf4", quantization_config=nf4)
        save("bitsandbytes-int8", quantization_config=BitsAndBytesConfig(load_in_8bit=True))

        from torchao.quantization import Int8WeightOnlyConfig

        save("torchao-int8", quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
        _make_compressed_tensors(LlamaForCausalLM.from_pretrained(base), out / "compressed-tensors")
        _make_hqq(LlamaForCausalLM.from_pretrained(base), out / "hqq")


def _make_compressed_tensors(model: object, out: Path) -> None:
    from compressed_tensors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    weights = QuantizationArgs(num_bits=4, group_size=16, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        if name.endswith("weight_scale"):
            parameter.data.fill_(0.01)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)  # type: ignore[attr-defined]
    compressor.update_config(str(out))


def _make_hqq(model: object, out: Path) -> None:
    import torch
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    config = BaseQuantizeConfig(nbits=4, group_size=16)
    AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
    AutoHQQHFModel.save_quantized(model, str(out))


def main() -> None:
    """Write all of it, telling what could not be written here."""
    steps: tuple[Callable[[Path], None], ...] = (make_gguf, make_onnx, make_quantised)
    for step in steps:
        step(HERE)
    for folder in HERE.iterdir():
        for extra in ("README.md", "generation_config.json"):
            (folder / extra).unlink(missing_ok=True) if folder.is_dir() else None
    shutil.rmtree(HERE / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
