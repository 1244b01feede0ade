"""Zeros where layers are smaller than others: stock classes hold the folder, without any code beside it, and compute
what the source computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_folders import random_cut, write_folder
from export_cases import EAGER_ONLY, cut_alike, exported, save_module, save_state
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_cuts import LayerPlan, cut_by, random_plan, run_experts_one_by_one
from safetensors import safe_open
from stranger_process import save_answers
from tiny_models import CASES, tiny_ids, tiny_model
from tiny_surgery import cut_attention, cut_layers, drop_layers

from gqacheck.export import CannotExport, ExportReport
from gqacheck.export.code import SUPPORTED
from gqacheck.export.text import export_blocks
from gqacheck.options import Options
from gqacheck.pipeline import check_path
from gqacheck.report.kept import kept_words
from gqacheck.rules.rule import Severity

NORM_OVER_ALL_HEADS = ("olmo2",)
CANNOT = (*NORM_OVER_ALL_HEADS, "stablelm_qk_norm")
PADDED = [name for name in CASES if name not in CANNOT]
QUICK = ("llama", "qwen3_next", "phi3", "cohere_qk_norm", "falcon", "gpt_oss")
ROUNDING = 1e-5
"""Of float64 sums in another order, through norms and softmax in float32, as a share of the logits' spread."""
ROUNDING_32 = 1e-4


def assert_close_answers(stranger: Any, model: Any, out: Path, *, family: str = "", dtype: str = "float64") -> None:
    """A stock class gives the logits of ``model`` but for rounding, and its greedy texts, and no code is allowed."""
    ids = tiny_ids()
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    if family in EAGER_ONLY:
        dtype = "float32"  # its mask of float64's lowest number is -inf to the softmax, which is computed in float32
    model = model.to(getattr(torch, dtype))
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if family in EAGER_ONLY:
        options["attn_implementation"] = "eager"
    if any("experts" in name for name, _ in model.named_parameters()):
        options["experts_implementation"] = "eager"  # torch's grouped product knows no float64
        run_experts_one_by_one(model)
    told = stranger("answers", folder=out, ids=ids.tolist(), mask=mask.tolist(), out=f"{out}.theirs.pt", **options)
    assert told["dtype"] == f"torch.{dtype}"
    assert "Pruned" not in told["class"]
    save_answers(model, ids, mask, f"{out}.ours.pt")
    theirs, ours = torch.load(f"{out}.theirs.pt"), torch.load(f"{out}.ours.pt")
    allowed = (ROUNDING if dtype == "float64" else ROUNDING_32) * float(ours["logits"].std())
    assert float((theirs["logits"] - ours["logits"]).abs().max()) <= allowed
    assert float((theirs["padded"] - ours["padded"])[mask.bool()].abs().max()) <= allowed
    for way in ("dynamic", "static", "none", "beams"):
        assert torch.equal(theirs[way], ours[way]), way


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a folder stores."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def assert_padded(report: ExportReport, out: Path) -> dict[str, Any]:
    """What holds of every padded folder; its config."""
    config = config_of(out)
    assert report.way == "padded"
    assert report.padding is not None
    assert report.comparison.equal
    assert "auto_map" not in config
    assert "gqacheck_layers" not in config
    assert not list(out.glob("*.py"))
    assert report.parameters == report.padding.parameters + report.padding.zeros
    assert report.notes[0].startswith("padded: every layer has ")
    assert not [finding for finding in report.after.findings if finding.severity is Severity.ERROR]
    return config


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PADDED]
)
def test_padded_export_of_a_family_loads_with_its_own_class(name: str, stranger: Any, tmp_path: Path) -> None:
    model = tiny_model(name)
    cut_layers(model, (1, 2, 3))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    assert report.architecture == type(model).__name__
    assert config["gqacheck_padded"]["num_attention_heads"][3] == 4
    assert config["gqacheck_padded"]["num_key_value_heads"][3] == 1
    assert_close_answers(stranger, model, tmp_path / "out", family=name)
    assert all(claim.state != "fail" for claim in report.after.claims)


def test_padded_export_says_what_it_costs(tmp_path: Path) -> None:
    model = tiny_model("llama")
    cut_layers(model, (1, 3))  # 8:2 and half the channels, 4:1
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (12, 3, 112)
    assert config["gqacheck_padded"] == {
        "num_attention_heads": [12, 8, 12, 4],
        "num_key_value_heads": [3, 2, 3, 1],
        "intermediate_size": [112, 56, 112, 112],
    }
    heads, channels = 8 * 96 * (2 * 4 + 2 * 1) + 8 * 96 * (2 * 8 + 2 * 2), 3 * 56 * 96
    assert report.padding is not None
    assert report.padding.zeros == heads + channels
    assert (report.padding.kv_before, report.padding.kv_after) == (2 * 8 * (3 + 2 + 3 + 1), 2 * 8 * 12)
    assert report.notes[0] == (
        "padded: every layer has 12:3 heads, 112 MLP channels now, zeros where it had fewer; what each layer had "
        "stands in config.json under gqacheck_padded"
    )
    text = "\n".join(str(block) for block in export_blocks(report))
    assert (
        "39,168 parameters of zeros beside 244,320 (16.0 % more), and a KV cache of 192 numbers per token where 144 "
        "would do"
    ) in text


@pytest.mark.parametrize("base", ["source", "parent"])
def test_padded_folder_beside_its_base_is_not_accused(base: str, tmp_path: Path) -> None:
    parent = tiny_model("llama")
    model = cut_by(parent, random_plan(parent, 3, depth=False))
    source = save_module(model, tmp_path / "in")
    exported(source, tmp_path / "out", pad=True, force=True)
    beside = source if base == "source" else save_module(parent, tmp_path / "parent")
    report = check_path(str(tmp_path / "out"), Options(base=str(beside)))
    assert not [finding for finding in report.findings if finding.severity is Severity.ERROR]
    assert {claim.name: claim.state for claim in report.claims}["pairing"] == "pass"
    assert report.lineage is not None
    kept = "; ".join(kept_words(report.lineage))
    assert "query heads, beside" in kept


def test_padded_heads_stand_beside_their_own_kv_head(tmp_path: Path) -> None:
    """9:3, 4:1 and 8:2 heads, each planted with its own number, found again where a stock class pairs them."""
    model = tiny_model("llama", attention_bias=True)
    cut_layers(model)
    sizes = [(12, 3), (8, 2), (9, 3), (4, 1)]
    with torch.no_grad():
        for layer, (n_q, n_kv) in zip(model.model.layers, sizes, strict=True):
            group = n_q // n_kv
            attention = layer.self_attn
            for head in range(n_q):
                attention.q_proj.weight[8 * head : 8 * head + 8] = 100 * (head // group + 1) + head % group
                attention.q_proj.bias[8 * head : 8 * head + 8] = 100 * (head // group + 1) + head % group
                attention.o_proj.weight[:, 8 * head : 8 * head + 8] = 100 * (head // group + 1) + head % group
            for head in range(n_kv):
                attention.k_proj.weight[8 * head : 8 * head + 8] = 100 * (head + 1)
                attention.v_proj.weight[8 * head : 8 * head + 8] = 100 * (head + 1)
    exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    found = tensors_of(tmp_path / "out")
    for index, (n_q, n_kv) in enumerate(sizes):
        q, k, v, o, bias = (
            found[f"model.layers.{index}.self_attn.{name}"]
            for name in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "q_proj.bias")
        )
        for head in range(12):
            kv, member = divmod(head, 4)  # what a stock class of 12:3 pairs
            there = kv < n_kv and member < n_q // n_kv
            for lines in (q[8 * head : 8 * head + 8], o[:, 8 * head : 8 * head + 8], bias[8 * head : 8 * head + 8]):
                assert lines.unique().tolist() == [100 * (kv + 1) + member if there else 0]
            for lines in (k[8 * kv : 8 * kv + 8], v[8 * kv : 8 * kv + 8]):
                assert lines.unique().tolist() == [100 * (kv + 1) if kv < n_kv else 0]


def test_padded_export_of_one_head_beside_twelve_and_of_a_dropped_layer(stranger: Any, tmp_path: Path) -> None:
    parent = tiny_model("llama")
    plan: list[LayerPlan | None] = [
        LayerPlan([5], [1], {None: [3]}),
        None,
        LayerPlan(),
        LayerPlan([8, 10, 0, 1], [2, 0], {None: list(range(16))}),
    ]
    model = cut_by(parent, plan)
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    assert config["gqacheck_padded"]["num_attention_heads"] == [1, 12, 4]
    assert config["gqacheck_padded"]["intermediate_size"] == [1, 112, 16]
    assert_close_answers(stranger, model, tmp_path / "out")


def test_padded_export_of_28_to_4_beside_7_to_1(stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen2", num_attention_heads=28, num_key_value_heads=4, hidden_size=224, head_dim=8)
    for index, kv in ((1, 2), (3, 0)):
        attention = model.model.layers[index].self_attn
        with torch.no_grad():
            for name, rows in (("q_proj", 56), ("k_proj", 8), ("v_proj", 8)):
                part = getattr(attention, name)
                part.weight = torch.nn.Parameter(part.weight[kv * rows : (kv + 1) * rows])
                part.bias = torch.nn.Parameter(part.bias[kv * rows : (kv + 1) * rows])
                part.out_features = rows
            attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, kv * 56 : (kv + 1) * 56])
            attention.o_proj.in_features = 56
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (28, 4)
    assert config["gqacheck_padded"]["num_attention_heads"] == [28, 7, 28, 7]
    assert_close_answers(stranger, model, tmp_path / "out")


@pytest.mark.parametrize("case", ["llama", "gemma2", "olmo2", "cohere", "phi3"])
def test_padded_export_of_dropped_blocks_writes_blocks_of_zeros(case: str, stranger: Any, tmp_path: Path) -> None:
    """OLMo-2's norms over all heads are no matter where only whole blocks are missing."""
    model = tiny_model(case)
    cut = random_cut(case, 5, no_attention={0, 2}, no_mlp={2, 3}) if case != "olmo2" else _uncut(case, {1}, {1, 2})
    source = write_folder(cut, tmp_path / "in")
    report = exported(source, tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    sizes = config["gqacheck_padded"]
    assert sizes["num_attention_heads"] == cut.sizes["num_attention_heads"]
    assert 0 in sizes["num_attention_heads"]
    assert 0 in sizes["intermediate_size"]
    assert report.architecture == type(model).__name__
    assert_close_answers(stranger, cut.model, tmp_path / "out", family=case)


def _uncut(case: str, no_attention: set[int], no_mlp: set[int]) -> Any:
    from cut_folders import as_cut

    return as_cut(case, tiny_model(case), no_attention, no_mlp)


@pytest.mark.parametrize("name", NORM_OVER_ALL_HEADS)
def test_padded_export_of_a_norm_over_all_heads_is_refused(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    cut_layers(model, (1,))
    with pytest.raises(CannotExport, match=r"layer 1: q_norm takes the mean over all 8 heads together, and zeros"):
        exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_padded_export_of_one_norm_per_head_is_refused(tmp_path: Path) -> None:
    model = tiny_model("stablelm_qk_norm")
    cut_layers(model, (1,))
    with pytest.raises(CannotExport, match="layer 1: each head has a norm of its own"):
        exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)


@pytest.mark.parametrize(("name", "architecture", "heads"), [("llama", "MistralForCausalLM", 10), ("gemma2", "", 12)])
def test_padded_export_takes_the_cheapest_class_that_accepts_it(
    name: str, architecture: str, heads: int, stranger: Any, tmp_path: Path
) -> None:
    """10 heads do not divide 96: LlamaConfig and Gemma2Config insist on a divisor, MistralConfig does not."""
    model = tiny_model(name)
    for index, layer in enumerate(model.model.layers):
        cut_attention(layer.self_attn, (0, 1, 3) if index else (0, 1, 2, 3), (0, 1, 2) if index == 1 else (0, 2))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    # 8:2, 9:3 and 6:2 heads: three groups of four
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (12, 3)
    assert report.architecture == type(model).__name__
    assert_close_answers(stranger, model, tmp_path / "out", family=name)
    model = tiny_model(name)
    for index, layer in enumerate(model.model.layers):
        cut_attention(layer.self_attn, (0, 1, 3), (0, 1, 2) if index else (1,))  # 9:3 and 3:1
    report = exported(save_module(model, tmp_path / "in2"), tmp_path / "out2", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out2")
    assert config["num_attention_heads"] == (9 if architecture else heads)
    assert report.architecture == (architecture or type(model).__name__)
    assert_close_answers(stranger, model, tmp_path / "out2", family=name)


def test_padded_export_of_a_uniform_gemma_that_its_config_refuses(stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    for layer in model.model.layers:
        cut_attention(layer.self_attn, (0, 1, 3), (0, 1, 2))
    report = exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config = assert_padded(report, tmp_path / "out")
    assert "refuses it: the hidden size (96)" in report.why
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (12, 3)
    assert_close_answers(stranger, model, tmp_path / "out")


def test_padding_that_is_not_needed_is_not_done_and_said(tmp_path: Path) -> None:
    model = cut_alike(tiny_model("llama"))
    source = save_module(model, tmp_path / "in")
    report = exported(source, tmp_path / "out", pad=True, force=True)
    plain = exported(source, tmp_path / "plain")
    assert (report.way, report.padding, report.comparison.difference) == ("stock", None, 0.0)
    assert report.notes == ("--pad: nothing had to be padded", *plain.notes)
    assert config_of(tmp_path / "out") == config_of(tmp_path / "plain")


def test_padded_export_of_a_family_without_a_class_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    cut_layers(model, (1,))
    model.config.model_type = "never_heard_of"
    state = save_state(model.state_dict(), model.config, tmp_path / "in")
    config = tmp_path / "in" / "config" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"unheard_of"').replace("LlamaForCausalLM", "Unheard"))
    with pytest.raises(CannotExport, match="no class of its own"):
        exported(state, tmp_path / "out", pad=True, config=tmp_path / "in" / "config", head_dim=8, force=True)


@pytest.mark.parametrize("case", ["phi3", "qwen3_moe", "gpt_oss"])
def test_padded_export_of_a_state_dict_is_that_of_its_module(case: str, tmp_path: Path) -> None:
    """Names and layouts of memory: qkv and gate_up in one, experts stacked."""
    model = tiny_model(case)
    cut_layers(model, (1, 3))
    head_dim = next(module.head_dim for module in model.modules() if hasattr(module, "head_dim"))
    source = save_state(model.state_dict(), model.config, tmp_path / "in")
    exported(source, tmp_path / "out", pad=True, config=tmp_path / "in" / "config", head_dim=head_dim)
    exported(save_module(model, tmp_path / "module"), tmp_path / "again", pad=True)
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_padded_export_in_bfloat16_and_many_shards_saves_and_loads_again(stranger: Any, tmp_path: Path) -> None:
    model = tiny_model("qwen2_tied")
    cut_layers(model)
    with torch.no_grad():
        for parameter in model.parameters():  # rope stays as it is
            parameter.data = parameter.data.bfloat16()
    report = exported(
        save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True, max_shard_size="20KB"
    )
    config = assert_padded(report, tmp_path / "out")
    assert (report.dtype, config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", "bfloat16", True)
    assert report.shards > 5
    found = tensors_of(tmp_path / "out")
    assert "lm_head.weight" not in found
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert {tuple(found[f"model.layers.{n}.self_attn.q_proj.weight"].shape) for n in range(4)} == {(96, 96)}
    stranger("round_trip", folder=tmp_path / "out", out=tmp_path / "again", trust_remote_code=False)
    again = tensors_of(tmp_path / "again")
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert config_of(tmp_path / "again")["gqacheck_padded"] == config["gqacheck_padded"]
    assert_close_answers(stranger, model, tmp_path / "again")


def test_padded_folder_exported_again_needs_no_padding_and_claims_none(tmp_path: Path) -> None:
    model = tiny_model("llama")
    cut_layers(model)
    exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    report = exported(tmp_path / "out", tmp_path / "again", pad=True)
    assert report.way == "stock"
    assert "gqacheck_padded" not in config_of(tmp_path / "again")
    one, other = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shapes_of_a_padded_folder_are_what_the_config_says(tmp_path: Path) -> None:
    """What converters go by: one number per size for all layers."""
    model = tiny_model("llama", tie_word_embeddings=True)
    cut_layers(model)
    drop_layers(model, [0, 1, 3])
    exported(save_module(model, tmp_path / "in"), tmp_path / "out", pad=True, force=True)
    config, found = config_of(tmp_path / "out"), tensors_of(tmp_path / "out")
    heads, kv, width, hidden = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size")
    )
    expected = {"q_proj": (heads * 8, hidden), "k_proj": (kv * 8, hidden), "v_proj": (kv * 8, hidden),
                "o_proj": (hidden, heads * 8), "gate_proj": (width, hidden), "up_proj": (width, hidden),
                "down_proj": (hidden, width)}  # fmt: skip
    seen = 0
    for name, tensor in found.items():
        shape = expected.get(name.removesuffix(".weight").rpartition(".")[2])
        seen += shape is not None
        assert shape in (None, tuple(tensor.shape)), name
    assert seen == config["num_hidden_layers"] * len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted({*QUICK, "mistral", "qwen3", "gemma3", "starcoder2", "mixtral"}))
def test_padded_export_of_any_cut(case: str, stranger: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert case.partition("_")[0] in {*SUPPORTED, "falcon", "gpt", "mixtral"}

    @settings(max_examples=4, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 10_000))
    def run(seed: int) -> None:
        folder = tmp_path_factory.mktemp(case)
        parent = tiny_model(case)
        model = cut_by(parent, random_plan(parent, seed))
        report = exported(save_module(model, folder / "in"), folder / "out", pad=True, force=True)
        assert report.comparison.equal
        assert_close_answers(stranger, model, folder / "out", family=case)

    run()


AXES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(spread=st.lists(st.none() | AXES, min_size=1, max_size=3), block=st.sampled_from([8, 40, 1 << 20]))
def test_padded_content_is_the_tensor_with_zeros_a_block_at_a_time(
    spread: list[Any], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from unittest.mock import patch

    from safetensors.torch import save_file

    from gqacheck.export import content, padded
    from gqacheck.formats import open_checkpoint
    from gqacheck.runtime.weights import WeightReader

    # a file of nothing but empty tensors is no checkpoint
    spread = [axis if axis is None or any(stored for _, stored in axis) else (*axis, (1, True)) for axis in spread]
    axes = [((3, True),) if axis is None else axis for axis in spread]
    kept = [torch.tensor([stored for count, stored in axis for _ in range(count)]) for axis in axes]
    values = torch.randn([max(int(mask.sum()), 0) for mask in kept])
    folder = tmp_path_factory.mktemp("content")
    save_file({"x": values}, folder / "model.safetensors")
    info = open_checkpoint(str(folder / "model.safetensors")).tensors["x"]
    expected = torch.zeros([len(mask) for mask in kept])
    expected[torch.meshgrid(*[mask.nonzero().flatten() for mask in kept], indexing="ij")] = values
    made = padded.Padded(info, tuple(spread))
    assert made.shape == tuple(expected.shape)
    rows = (1, max(len(kept[0]) - 2, 0))
    with patch.object(content, "BLOCK", block), patch.object(padded, "BLOCK", block), WeightReader() as reader:
        for one, reference in ((made, expected), (made.rows(*rows), expected[rows[0] : sum(rows)])):
            blocks = list(one.blocks(reader))
            assert all(each.numel() * each.element_size() <= block for each in blocks)
            found = torch.cat([each.reshape(-1).float() for each in blocks]) if blocks else torch.zeros(0)
            assert torch.equal(found.reshape(reference.shape), reference)
