"""GQA305 on real files: routers, experts and configs that do not agree on a number."""

from __future__ import annotations

import pytest
from bent import MIXTRAL, bent
from harness import Case, Cases, Make, cases, fires, golden, silent

from gqacheck.testing.sketch import Sketch

MLP = "model.layers.1.mlp"


def stacked_with_four_experts() -> Sketch:
    """One layer of a pickle cut from 5 experts to 4, router and config in step, attributes left behind."""
    sketch = golden("mixtral", live=True)
    for name in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        _, *rest = sketch.shape(f"{MLP}.{name}")
        sketch.set_tensor(f"{MLP}.{name}", (4, *rest))
    sketch.config["num_local_experts"] = None
    return sketch


def fewer_experts() -> Sketch:
    """Four of five experts, the router and the config in step."""
    changes: dict[str, tuple[int, ...] | None] = {}
    for layer in range(3):
        changes |= dict.fromkeys(f"model.layers.{layer}.{MIXTRAL}.4.{w}.weight" for w in ("w1", "w2", "w3"))
        changes[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = (4, 96)
    return bent("mixtral", changes, num_local_experts=4)


FIRES: Cases = {
    "GQA305": [
        (
            "router row too few",
            lambda: Case(
                bent("mixtral", {"model.layers.1.block_sparse_moe.gate.weight": (4, 96)}),
                container="folder",
                severity="error",
                layers=[1],
                says=["the router has 4 rows, but 5 experts are stored"],
                tells=["ckpt: torch.Size([4, 96]) vs model:torch.Size([5, 96])"],
            ),
        ),
        (
            "router rows too many in a pickle",
            lambda: Case(
                bent("qwen2_moe", {"model.layers.2.mlp.gate.weight": (7, 96)}, live=True),
                severity="error",
                says=["the router has 7 rows, but 5 experts are stored"],
                tells=["2 experts that are not there"],
            ),
        ),
        (
            "last expert removed, router not",
            lambda: Case(
                bent("mixtral", dict.fromkeys(f"model.layers.1.{MIXTRAL}.4.{w}.weight" for w in ("w1", "w2", "w3"))),
                container="folder",
                says=["the router has 5 rows, but 4 experts are stored"],
            ),
        ),
        (
            "router bias",
            lambda: Case(
                bent("gpt_oss", {"model.layers.1.mlp.router.bias": (4,)}),
                container="folder",
                says=["the router's bias holds 4 values, its weight has 5 rows"],
                tells=["MISMATCH for ….mlp.router.bias"],
            ),
        ),
        (
            "config count in a folder",
            lambda: Case(
                bent("mixtral", {}, num_local_experts=8),
                container="folder",
                severity="error",
                layers=[0, 1, 2],
                says=["5 experts are stored, but config.json num_local_experts is 8"],
                fixes=["num_local_experts to 5"],
                count=1,
            ),
        ),
        (
            "config count in a pickle",
            lambda: Case(bent("mixtral", {}, live=True, num_local_experts=8), severity="warning"),
        ),
        (
            "stale attribute of stacked experts",
            lambda: Case(
                stacked_with_four_experts(),
                severity="error",
                layers=[1],
                says=["4 experts are stored, but the experts' module attribute num_experts is 5"],
                tells=["matrix batch sizes have to match"],
                count=1,
            ),
        ),
        (
            "top_k above what is left",
            lambda: Case(
                bent("mixtral", {}, num_experts_per_tok=6),
                container="folder",
                severity="error",
                says=["num_experts_per_tok asks for 6 experts per token, but there are 5"],
                tells=["selected index k out of range"],
            ),
        ),
    ],
}

NEARLY: Cases = {
    "GQA305": [
        ("experts, router and config in step", lambda: Case(fewer_experts(), container="folder")),
        (
            "as many experts per token as there are",
            lambda: Case(bent("mixtral", {}, num_experts_per_tok=5), container="folder"),
        ),
        ("correction bias of the router", lambda: Case(golden("glm4_moe"), container="folder")),
        ("dense layer between expert layers", lambda: Case(golden("qwen2_moe"), container="folder")),
        (
            "hostile config values",
            lambda: Case(bent("mixtral", {}, num_local_experts="5", num_experts_per_tok=[9]), container="folder"),
        ),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_top_k_of_a_pickle_is_read_from_its_modules() -> None:
    sketch = golden("mixtral", live=True)
    sketch.config["num_experts_per_tok"] = 9
    silent(sketch, "GQA305")
    sketch.modules["model.layers.1.mlp.gate"].attributes["top_k"] = 6
    fires(sketch, "GQA305", layers=[1], says=["module attribute top_k asks for 6 experts per token"])
