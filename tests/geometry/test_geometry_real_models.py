"""The goldens are what transformers makes today, and real files of every family are measured like them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gqacheck.checkpoint import Checkpoint  # noqa: E402 - needs torch, which may be absent
from gqacheck.formats import open_checkpoint  # noqa: E402
from gqacheck.geometry.facts import Geometry  # noqa: E402
from gqacheck.geometry.measure import measure  # noqa: E402

FAMILIES = Path(__file__).parents[1] / "data" / "families"


def load_maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_family_goldens", FAMILIES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MAKER = load_maker()
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 2))
    yield
    torch.set_num_threads(before)


def as_numbers(geometry: Geometry) -> list[Any]:
    """What two readings of one model must agree on: sizes, not names."""
    return [
        (layer.signature, layer.attention.n_q_heads, layer.attention.n_kv_heads, len(layer.norms))
        for layer in geometry.layers
    ]


def assert_complete(given: Checkpoint) -> Geometry:
    geometry = measure(given)
    assert geometry.unknown == ()
    assert geometry.missing == ()
    assert not geometry.family.generic
    assert not any(layer.attention.head_dim.disputed for layer in geometry.layers if layer.attention.head_dim)
    return geometry


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAKER.MODELS))
def test_real_model_is_the_golden_and_measures_alike_everywhere(name: str, tmp_path: Path) -> None:
    from gqacheck.runtime.live import describe_model

    model = MAKER.build(name)
    if transformers.__version__ == json.loads((FAMILIES / f"{name}.json").read_text())["made_with"].split()[1]:
        assert MAKER.as_json(MAKER.record(name, model)) == (FAMILIES / f"{name}.json").read_text()
    torch.save({"model": model, "tokenizer": None}, tmp_path / "whole.bin")
    torch.save(model.state_dict(), tmp_path / "state.bin")
    model.save_pretrained(tmp_path / "folder")
    live = assert_complete(describe_model(model))
    pickled = assert_complete(open_checkpoint(str(tmp_path / "whole.bin")))
    folder = assert_complete(open_checkpoint(str(tmp_path / "folder")))
    state = assert_complete(
        open_checkpoint(str(tmp_path / "state.bin"), config=str(tmp_path / "folder" / "config.json"))
    )
    assert live.family.name == pickled.family.name == folder.family.name == state.family.name
    assert as_numbers(live) == as_numbers(pickled) == as_numbers(folder) == as_numbers(state)
    assert live.lm_head_tied == pickled.lm_head_tied == folder.lm_head_tied == state.lm_head_tied
    config = model.config.get_text_config()
    full = [layer.attention for layer in live.layers if layer.attention.kind == "full"]
    for attention in full:
        kv_heads = 1 if name == "falcon_multi_query" else getattr(config, "num_key_value_heads", None)
        assert attention.n_q_heads == config.num_attention_heads
        assert attention.n_kv_heads == (kv_heads or config.num_kv_heads)
    assert bool(full) == (not name.startswith("deepseek"))
    bare = measure(open_checkpoint(str(tmp_path / "state.bin")))
    assert bare.unknown == ()
    assert bare.missing == ()
