"""Packed weights: are the stored tensors the model's own matrices, or what a quantiser made of them?"""

from __future__ import annotations

from collections.abc import Mapping

from gqacheck.checkpoint import ConfigInfo, Plain, TensorInfo
from gqacheck.text import printable

COMPANIONS: tuple[tuple[str, str], ...] = (
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_2", "modelopt"),
    (".weight_scale_inv", "fp8"),
    (".W_q", "hqq"),
    (".g_idx", "gptq"),
    (".qweight", "awq"),
    (".codebooks", "aqlm"),
    (".Qidxs", "quip"),
    (".weight._data", "quanto"),
    ("_blocks", "mxfp4"),
    (".weight_scale", "fp8"),
    (".zero_point", "torch-quantized"),
)
"""Endings of tensor names that only a quantiser writes, and its name; the first that is found decides.

GPTQ and AWQ both write ``qweight``, ``qzeros`` and ``scales``; only GPTQ writes ``g_idx``.
"""

_DENSE = ("float16", "bfloat16", "float32", "float64")


def detect_quantization(tensors: Mapping[str, TensorInfo], config: ConfigInfo | None) -> tuple[str | None, str | None]:
    """The quantisation method when the weights are packed (else None), and a sentence when config and file disagree.

    The file decides whether anything is packed, the config what the method is called: a ``quantization_config`` that
    was left behind on dense weights packs nothing.
    """
    claimed = _read_claim(config)
    found = _detect_from_names(tensors)
    if found is not None or _holds_packed_matrices(tensors, float8=claimed is not None):
        return claimed or found or "unknown", None
    if claimed is None or config is None:
        return None, None
    return None, f"{config.source} names the quantisation method {claimed}, but the weights are stored dense"


def _read_claim(config: ConfigInfo | None) -> str | None:
    section: Plain = config.values.get("quantization_config") if config else None
    if not isinstance(section, Mapping):
        return None
    method = section.get("quant_method")
    if isinstance(method, str):
        return printable(method, 40)
    if section.get("load_in_4bit") is True or section.get("load_in_8bit") is True:
        return "bitsandbytes"
    return "unknown"


def _detect_from_names(tensors: Mapping[str, TensorInfo]) -> str | None:
    endings = tuple(ending for ending, _ in COMPANIONS)
    companions = [name for name in tensors if name.endswith(endings)]
    found = {ending for ending in endings if any(name.endswith(ending) for name in companions)}
    if "_blocks" in found and not any(name.endswith("_scales") for name in tensors):
        found.discard("_blocks")
    return next((method for ending, method in COMPANIONS if ending in found), None)


def _holds_packed_matrices(tensors: Mapping[str, TensorInfo], *, float8: bool) -> bool:
    """Whether any weight with two or more sizes is stored in integers (or, with ``float8``, in 8-bit floats)."""
    return any(
        len(tensor.shape) >= 2
        and tensor.dtype not in _DENSE
        and (float8 or not tensor.dtype.startswith("float8"))
        and name.endswith(("weight", "weight_q", "qdata"))
        for name, tensor in tensors.items()
    )
