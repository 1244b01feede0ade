"""The modelling file that an export of differing layers brings along, generated per family from one template."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from string import Template

_TEMPLATE = "modeling.py.txt"
_OWN_TYPE = "gqacheck_"


@dataclass(frozen=True, slots=True)
class _Stock:
    """Names of a family's stock classes, and the norms of a layer that serve only one of its two blocks."""

    prefix: str
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    text: str = ""  # what stands between the prefix and Config or Model


def _sandwich(prefix: str, text: str = "") -> _Stock:
    """A norm before and after each block."""
    before = "input_layernorm", "pre_feedforward_layernorm"
    after = "post_attention_layernorm", "post_feedforward_layernorm"
    return _Stock(prefix, (before[0], after[0]), (before[1], after[1]), text)


def _afterwards(prefix: str) -> _Stock:
    """A norm after each block."""
    return _Stock(prefix, ("post_attention_layernorm",), ("post_feedforward_layernorm",))


def _parallel(prefix: str) -> _Stock:
    """One norm before both blocks, which stays as long as one of them does."""
    return _Stock(prefix, (), ())


# Dense families whose stock layers are built from (config, layer_idx) and read every size from that config.
_STOCK = {
    "llama": _Stock("Llama"),
    "mistral": _Stock("Mistral"),
    "qwen2": _Stock("Qwen2"),
    "qwen3": _Stock("Qwen3"),
    "gemma": _Stock("Gemma"),
    "gemma2": _sandwich("Gemma2"),
    "gemma3": _sandwich("Gemma3", "Text"),
    "phi3": _Stock("Phi3"),
    "granite": _Stock("Granite"),
    "olmo": _Stock("Olmo"),
    "olmo2": _afterwards("Olmo2"),
    "olmo3": _afterwards("Olmo3"),
    "cohere": _parallel("Cohere"),
    "cohere2": _parallel("Cohere2"),
    "starcoder2": _Stock("Starcoder2"),
    "nemotron": _Stock("Nemotron"),
    "glm": _Stock("Glm"),
    "smollm3": _Stock("SmolLM3"),
    "seed_oss": _Stock("SeedOss"),
    "arcee": _Stock("Arcee"),
    "exaone4": _afterwards("Exaone4"),
    "ernie4_5": _Stock("Ernie4_5"),
    "hunyuan_v1_dense": _Stock("HunYuanDenseV1"),
}

SUPPORTED: frozenset[str] = frozenset(_STOCK)
"""gqacheck's names of the families that a modelling file can be written for."""


def model_type(family: str) -> str:
    """The ``model_type`` for config.json: one that no stock class claims, so that none is loaded by mistake."""
    return _OWN_TYPE + family


def can_build(family: str, config_class: str) -> bool:
    """Whether a modelling file can be written for a checkpoint of ``family`` with this stock config class.

    A family may have kin with a class of their own, which the file would not build (Mistral and Ministral).
    """
    return family in SUPPORTED and config_class == f"{_STOCK[family].prefix}{_STOCK[family].text}Config"


def modelling_file(family: str) -> tuple[str, str]:
    """File name and Python source of the classes that build a checkpoint of ``family`` layer by layer.

    Raises:
        KeyError: ``family`` is not in ``SUPPORTED``.
    """
    stock = _STOCK[family]
    template = Template((files("gqacheck.export") / "templates" / _TEMPLATE).read_text(encoding="utf-8"))
    config, backbone = f"{stock.prefix}{stock.text}Config", f"{stock.prefix}{stock.text}Model"
    causal = f"{stock.prefix}ForCausalLM"
    source = template.substitute(
        Family=stock.prefix,
        imports=", ".join(sorted((config, backbone, causal, "GenerationMixin"))),
        Config=config,
        Model=backbone,
        CausalLM=causal,
        model_type=model_type(family),
        attention_norms=_tuple(stock.attention_norms),
        mlp_norms=_tuple(stock.mlp_norms),
    )
    return f"{_module(family)}.py", source


def auto_map(family: str) -> dict[str, str]:
    """The ``auto_map`` for config.json: which class of the modelling file each Auto class loads.

    Raises:
        KeyError: ``family`` is not in ``SUPPORTED``.
    """
    stem = f"{_module(family)}.Pruned{_STOCK[family].prefix}"
    return {
        "AutoConfig": f"{stem}Config",
        "AutoModel": f"{stem}Model",
        "AutoModelForCausalLM": f"{stem}ForCausalLM",
    }


def architecture(family: str) -> str:
    """The class name for ``architectures`` in config.json.

    Raises:
        KeyError: ``family`` is not in ``SUPPORTED``.
    """
    return f"Pruned{_STOCK[family].prefix}ForCausalLM"


def block_norms(family: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names, within a layer, of the norms that go with a dropped attention block and with a dropped MLP.

    Raises:
        KeyError: ``family`` is not in ``SUPPORTED``.
    """
    return _STOCK[family].attention_norms, _STOCK[family].mlp_norms


def _module(family: str) -> str:
    return f"modeling_pruned_{family}"


def _tuple(names: tuple[str, ...]) -> str:
    """As the formatter would write it."""
    inner = ", ".join(f'"{name}"' for name in names)
    return f"({inner},)" if len(names) == 1 else f"({inner})"
