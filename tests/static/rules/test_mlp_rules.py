"""GQA301 to GQA304 on real files: every fault where it is, and what looks like one and is none."""

from __future__ import annotations

import pytest
from bent import MIXTRAL, bent, experts
from harness import Case, Cases, Make, cases, findings, fires, golden, silent, skips

from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import tensor

CODES = ("GQA301", "GQA302", "GQA303", "GQA304", "GQA305")
MLP = "model.layers.1.mlp"
STACKED = "model.layers.1.mlp.experts"


def llama(**rows_and_columns: tuple[int | None, int | None]) -> Sketch:
    """A Llama with 128 MLP channels and hidden size 96; keywords resize projections of layer 1 to (rows, columns)."""
    sketch = sketch_llama()
    for name, (rows, columns) in rows_and_columns.items():
        sketch.resize(f"{MLP}.{name}", rows=rows, columns=columns)
    return sketch


def cut_everywhere(width: int) -> Sketch:
    sketch = llama()
    for layer in range(3):
        sketch.cut_mlp(layer, width)
    return sketch


FIRES: Cases = {
    "GQA301": [
        (
            "gate 80 of 128 in a pickle",
            lambda: Case(
                llama(gate_proj=(80, None)),
                severity="error",
                layers=[1],
                says=["gate_proj has 80 rows, up_proj has 128"],
                tells=["The size of tensor a (80) must match the size of tensor b (128)"],
                count=1,
            ),
        ),
        (
            "gate of one row is broadcast",
            lambda: Case(llama(gate_proj=(1, None)), tells=["without an error"]),
        ),
        (
            "up 80 in a folder",
            lambda: Case(
                llama(up_proj=(80, None)),
                container="folder",
                tells=[
                    "MISMATCH for ….mlp.up_proj.weight",
                    "ckpt: torch.Size([80, 96]) vs model:torch.Size([128, 96])",
                ],
            ),
        ),
        (
            "gate 80 in a state dict",
            lambda: Case(
                llama(gate_proj=(80, None)),
                container="state-dict",
                tells=[
                    "size mismatch for ….mlp.gate_proj.weight",
                    "the shape in current model is torch.Size([128, 96])",
                ],
            ),
        ),
        (
            "two of five experts",
            lambda: Case(
                bent("mixtral", experts(MIXTRAL, "w1", (60, 96), [1, 3])),
                container="folder",
                layers=[1],
                count=1,
                says=["w1 of 2 of 5 experts (1, 3) has 60 rows, w3 has 72"],
                tells=["CONVERSION, stack expects each tensor to be equal size"],
            ),
        ),
        (
            "one expert",
            lambda: Case(
                bent("mixtral", experts(MIXTRAL, "w1", (60, 96), [4])), container="folder", says=["w1 of expert 4 has"]
            ),
        ),
        (
            "shared expert",
            lambda: Case(
                bent("qwen2_moe", {"model.layers.0.mlp.shared_expert.up_proj.weight": (40, 96)}),
                container="folder",
                layers=[0],
                says=["gate_proj of the shared expert has 44 rows, up_proj has 40"],
                tells=[
                    "up_proj.weight: Reinit due to size mismatch - ckpt: torch.Size([40, 96]) vs model:torch.Size([44,"
                ],
            ),
        ),
        (
            "odd fused rows",
            lambda: Case(
                bent("phi3", {f"{MLP}.gate_up_proj.weight": (143, 96)}, live=True),
                says=["gate_up_proj has 143 rows, an odd number"],
                tells=["The size of tensor a (71) must match the size of tensor b (72)"],
            ),
        ),
        (
            "odd fused rows, nothing says how many",
            lambda: Case(
                bent("phi3", {f"{MLP}.gate_up_proj.weight": (143, 96)}),
                container="state-dict",
                family="phi3",
                tells=["every class builds an even number of rows"],
            ),
        ),
        (
            "odd fused rows in a folder",
            lambda: Case(
                bent("phi3", {f"{MLP}.gate_up_proj.weight": (143, 96)}),
                container="folder",
                tells=["ckpt: torch.Size([143, 96]) vs model:torch.Size([144, 96])"],
            ),
        ),
        (
            "odd stacked rows",
            lambda: Case(
                bent("gpt_oss", {f"{STACKED}.gate_up_proj": (5, 96, 143)}),
                container="folder",
                says=["gate_up_proj of the stacked experts has 143 rows"],
            ),
        ),
    ],
    "GQA302": [
        (
            "down left behind",
            lambda: Case(
                llama(gate_proj=(80, None), up_proj=(80, None)),
                severity="error",
                layers=[1],
                says=["down_proj takes 128 channels, but gate_proj and up_proj give 80"],
                tells=["mat1 and mat2 shapes cannot be multiplied (Tx80 and 128x96)"],
                fixes=["columns"],
                count=1,
            ),
        ),
        (
            "down cut alone in a folder",
            lambda: Case(
                llama(down_proj=(None, 80)),
                container="folder",
                tells=["ckpt: torch.Size([96, 80]) vs model:torch.Size([96, 128])"],
            ),
        ),
        (
            "plain MLP",
            lambda: Case(
                bent("starcoder2", {f"{MLP}.c_proj.weight": (96, 60)}),
                container="folder",
                says=["c_proj takes 60 channels, but c_fc gives 72"],
            ),
        ),
        (
            "fused gate_up",
            lambda: Case(
                bent("phi3", {f"{MLP}.gate_up_proj.weight": (120, 96)}, live=True),
                says=["down_proj takes 72 channels, but half of gate_up_proj gives 60"],
                tells=["(Tx60 and 72x96)"],
            ),
        ),
        (
            "all experts",
            lambda: Case(
                bent("mixtral", experts(MIXTRAL, "w2", (96, 60), [0, 1, 2, 3, 4])),
                container="folder",
                says=["w2 of 5 of 5 experts (0-4) takes 60 channels"],
                tells=["merges the experts, reports MISMATCH"],
                count=1,
            ),
        ),
        (
            "stacked experts",
            lambda: Case(
                bent("qwen2_moe", {"model.layers.2.mlp.experts.down_proj": (5, 96, 20)}, live=True),
                layers=[2],
                says=["down_proj of the stacked experts takes 20 channels, but half of gate_up_proj gives 28"],
                tells=["contraction dimension"],
            ),
        ),
    ],
    "GQA303": [
        (
            "gate reads too few",
            lambda: Case(
                llama(gate_proj=(None, 80)),
                severity="error",
                layers=[1],
                says=["gate_proj takes 80 inputs, but hidden_size is 96 (embed_tokens columns)"],
                tells=["(Tx96 and 80x128)"],
                count=1,
            ),
        ),
        (
            "down writes too few",
            lambda: Case(
                llama(down_proj=(80, None)),
                says=["down_proj gives 80 outputs"],
                tells=["The size of tensor a (96) must match the size of tensor b (80)"],
            ),
        ),
        ("down writes one", lambda: Case(llama(down_proj=(1, None)), tells=["without an error"])),
        (
            "router",
            lambda: Case(
                bent("mixtral", {"model.layers.1.block_sparse_moe.gate.weight": (5, 80)}),
                container="folder",
                says=["gate takes 80 inputs"],
                tells=["ckpt: torch.Size([5, 80]) vs model:torch.Size([5, 96])"],
            ),
        ),
        (
            "stacked and transposed",
            lambda: Case(
                bent("gpt_oss", {f"{STACKED}.down_proj": (5, 72, 80)}),
                container="folder",
                says=["down_proj of the stacked experts gives 80 outputs"],
            ),
        ),
        (
            "fused gate_up once",
            lambda: Case(
                bent("phi3", {f"{MLP}.gate_up_proj.weight": (144, 80)}),
                container="folder",
                says=["gate_up_proj takes 80 inputs"],
                count=1,
            ),
        ),
    ],
    "GQA304": [
        (
            "bias of c_fc",
            lambda: Case(
                bent("starcoder2", {f"{MLP}.c_fc.bias": (60,)}, live=True),
                severity="error",
                layers=[1],
                says=["the bias of c_fc holds 60 values, its weight has 72 rows"],
                tells=["The expanded size of the tensor (72) must match the existing size (60)"],
                count=1,
            ),
        ),
        (
            "bias of a cut weight",
            lambda: Case(
                bent("llama_biased", {f"{MLP}.gate_proj.weight": (60, 96)}),
                container="folder",
                says=["the bias of gate_proj holds 72 values, its weight has 60 rows"],
                tells=[
                    "MISMATCH for ….mlp.gate_proj.weight",
                    "ckpt: torch.Size([60, 96]) vs model:torch.Size([72, 96])",
                ],
            ),
        ),
        (
            "bias cut without its weight",
            lambda: Case(
                bent("llama_biased", {f"{MLP}.gate_proj.bias": (60,)}),
                container="folder",
                tells=["MISMATCH for ….mlp.gate_proj.bias", "ckpt: torch.Size([60]) vs model:torch.Size([72])"],
            ),
        ),
        (
            "bias of one value",
            lambda: Case(bent("starcoder2", {f"{MLP}.c_proj.bias": (1,)}, live=True), tells=["without an error"]),
        ),
        (
            "stacked bias",
            lambda: Case(
                bent("gpt_oss", {f"{STACKED}.gate_up_proj_bias": (5, 120)}),
                container="folder",
                says=["the bias of gate_up_proj of the stacked experts holds 120 values, its weight has 144 rows"],
                count=1,
            ),
        ),
    ],
}

NEARLY: Cases = {
    "GQA301": [
        ("gate and up cut alike, down not", lambda: Case(llama(gate_proj=(80, None), up_proj=(80, None)))),
        (
            "layers of different width",
            lambda: Case(llama(gate_proj=(80, None), up_proj=(80, None), down_proj=(None, 80))),
        ),
        ("no gate to compare", lambda: Case(bent("starcoder2", {f"{MLP}.c_fc.weight": (60, 96)}), container="folder")),
        (
            "experts of different width",
            lambda: Case(
                bent("mixtral", experts(MIXTRAL, "w1", (60, 96), [3]) | experts(MIXTRAL, "w3", (60, 96), [3])),
                container="folder",
            ),
        ),
    ],
    "GQA302": [
        ("cut in step", lambda: Case(cut_everywhere(80))),
        ("down fits up where gate does not: that is GQA301", lambda: Case(llama(gate_proj=(80, None)))),
        ("down fits gate where up does not", lambda: Case(llama(up_proj=(80, None)))),
        ("odd fused rows are GQA301", lambda: Case(bent("phi3", {f"{MLP}.gate_up_proj.weight": (143, 96)}, live=True))),
    ],
    "GQA303": [
        ("width cut, hidden size not", lambda: Case(cut_everywhere(80))),
        ("gate_up transposed on purpose", lambda: Case(golden("gpt_oss"), container="folder")),
        ("shared expert gate is not a router", lambda: Case(golden("qwen2_moe"), container="folder")),
    ],
    "GQA304": [
        (
            "bias and weight cut in step",
            lambda: Case(
                bent("starcoder2", {f"{MLP}.c_fc.weight": (60, 96), f"{MLP}.c_fc.bias": (60,)}), container="folder"
            ),
        ),
        ("no bias at all", lambda: Case(cut_everywhere(80))),
        ("stacked bias per expert", lambda: Case(golden("gpt_oss"), container="folder")),
    ],
}


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


def test_same_fault_in_several_layers_is_one_finding() -> None:
    sketch = llama()
    for layer in (0, 2):
        sketch.resize(f"model.layers.{layer}.mlp.gate_proj", rows=80)
    for container in ("module", "folder", "state-dict"):
        fires(sketch, "GQA301", container=container, layers=[0, 2], count=1)


def test_gate_mismatch_alone_accuses_nothing_else() -> None:
    found = findings(llama(gate_proj=(80, None)), CODES)
    assert [finding.code for finding in found] == ["GQA301"]


def test_rule_on_packed_weights_is_skipped() -> None:
    sketch = llama()
    packed = tensor((48, 128), "int32", parameter=True)
    for layer in range(3):
        for name in ("gate_proj", "up_proj", "down_proj"):
            sketch.drop(f"model.layers.{layer}.mlp.{name}")
            sketch.tensors[f"model.layers.{layer}.mlp.{name}.qweight"] = packed
    for code in CODES:
        skips(sketch, code, needs="dense-weights", container="folder")


def test_tensors_of_a_finding_are_bounded() -> None:
    sketch = golden("mixtral")
    for expert in range(5, 64):
        for part, shape in (("w1", (60, 96)), ("w2", (96, 72)), ("w3", (72, 96))):
            sketch.set_tensor(f"model.layers.1.{MIXTRAL}.{expert}.{part}.weight", shape)
    finding = fires(sketch, "GQA301", container="folder", count=1)
    assert "59 of 64 experts (5-63)" in finding.message
    assert 0 < len(finding.tensors) <= 16


def test_unknown_family_is_a_warning() -> None:
    sketch = llama(gate_proj=(80, None))
    sketch.config["model_type"] = "never_heard_of"
    sketch.config["architectures"] = ["NeverHeardOfForCausalLM"]
    fires(sketch, "GQA301", container="folder", severity="warning")


def test_module_of_another_orientation_is_not_accused() -> None:
    silent(golden("llama4"), "GQA303", container="folder")
