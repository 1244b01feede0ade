"""GQA010 to GQA015: what the container says."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from harness import OLD_PICKLES, Case, Cases, Make, cases, codes, fires, silent, skips, write

from gqacheck.checkpoint import Checkpoint, StorageInfo
from gqacheck.formats import open_checkpoint
from gqacheck.rules.known_globals import classify
from gqacheck.testing.sketch import Sketch, sketch_llama
from gqacheck.testing.writers import Global, Reduce, Storage, Tensor, tensor

UP = "model.layers.1.mlp.up_proj.weight"


def naming(module: str, name: str) -> Callable[[Path], Path]:
    """A healthy model whose pickle also names one global."""
    return lambda folder: sketch_llama().write_module(folder / "m.bin", extra={"extra": Global(module, name)})


def calling(module: str, name: str, *arguments: object) -> Callable[[Path], Path]:
    """A healthy model whose pickle also calls one global."""
    return lambda folder: sketch_llama().write_module(
        folder / "m.bin", extra={"extra": Reduce(Global(module, name), arguments)}
    )


def with_view(tensor_: Tensor, name: str = UP) -> Sketch:
    sketch = sketch_llama()
    sketch.tensors[name] = tensor_
    return sketch


def storage(elements: int, *, declared: int | None = None) -> Storage:
    return Storage(bytes(2 * elements), "float16", declared)


def truncated_view() -> Sketch:
    return with_view(Tensor(storage(127 * 96), (128, 96), (96, 1), parameter=True))


def one_element_too_far() -> Sketch:
    return with_view(Tensor(storage(128 * 96), (128, 96), (96, 1), offset=1, parameter=True))


def strided_to_the_last_element() -> Sketch:
    return with_view(Tensor(storage(2 * 128 * 96 - 1), (128, 96), (192, 2), parameter=True))


def short_storage() -> Sketch:
    return with_view(Tensor(storage(128 * 96, declared=128 * 97), (128, 96), (96, 1), parameter=True))


def rows_cut_as_a_view() -> Sketch:
    """What ``weight.data = weight.data[:64]`` leaves: the view starts at the old storage and uses half of it."""
    sketch = sketch_llama()
    sketch.cut_mlp(1, 64)
    old = tensor((128, 96)).storage
    sketch.tensors[UP] = Tensor(old, (64, 96), (96, 1), parameter=True)
    return sketch


def tied_rows_cut_as_a_view() -> Sketch:
    sketch = rows_cut_as_a_view()
    old = sketch.tensors[UP]
    twin = Tensor(old.storage, old.shape, old.strides, parameter=True)
    sketch.tensors["model.layers.2.mlp.up_proj.weight"] = twin
    return sketch


def columns_cut_as_a_view() -> Sketch:
    """``weight[:, :64]``: the view reaches the end of the storage and uses half of each row."""
    sketch = sketch_llama()
    sketch.cut_mlp(1, 64)
    old = tensor((96, 128)).storage
    sketch.tensors["model.layers.1.mlp.down_proj.weight"] = Tensor(old, (96, 64), (128, 1), parameter=True)
    return sketch


def gate_and_up_in_one_storage() -> Sketch:
    sketch = sketch_llama()
    both = storage(2 * 128 * 96)
    sketch.tensors["model.layers.1.mlp.gate_proj.weight"] = Tensor(both, (128, 96), (96, 1), parameter=True)
    sketch.tensors[UP] = Tensor(both, (128, 96), (96, 1), offset=128 * 96, parameter=True)
    return sketch


def sharded(folder: Path) -> Path:
    return sketch_llama().write_folder(folder / "model", shards=3)


def without_a_shard(folder: Path) -> Path:
    (sharded(folder) / "model-00002-of-00003.safetensors").unlink()
    return folder / "model"


def with_total_size(change: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        index = sharded(folder) / "model.safetensors.index.json"
        values = json.loads(index.read_text())
        values["metadata"]["total_size"] += change
        index.write_text(json.dumps(values))
        return folder / "model"

    return make


def without_an_entry(folder: Path) -> Path:
    index = sharded(folder) / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"][UP]
    index.write_text(json.dumps(values))
    return folder / "model"


def config_saying_it_twice(folder: Path) -> Path:
    path = sketch_llama().write_folder(folder / "model")
    config = path / "config.json"
    config.write_text(
        config.read_text().replace('"num_key_value_heads": 3', '"num_key_value_heads": 6,\n "num_key_value_heads": 3')
    )
    return path


FIRES: Cases = {
    "GQA010": [
        ("system", lambda: Case(calling("posix", "system", "true"), "error", says=["posix.system", "not executed"])),
        ("eval", lambda: Case(calling("builtins", "eval", "1"), "error", says=["builtins.eval"])),
        (
            "class of one's own",
            lambda: Case(naming("house.layers", "Net"), "warning", says=["1 global", "house.layers.Net"]),
        ),
        (
            "look-alike package",
            lambda: Case(naming("transformers_evil.models", "LlamaModel"), "warning", says=["transformers_evil"]),
        ),
        (
            "walk to globals",
            lambda: Case(
                naming("torch.nn.modules.linear", "Linear.__init__.__globals__"), "error", says=["interpreter"]
            ),
        ),
        ("getattr", lambda: Case(naming("builtins", "getattr"), "warning", says=["any attribute"])),
    ],
    "GQA011": [
        ("whole module", lambda: Case(sketch_llama(), "note", says=["LlamaForCausalLM"])),
        (
            "old sdpa class",
            lambda: Case(OLD_PICKLES / "qwen2-pruned-fp32-4.40.2.bin", "note", tells=["Qwen2SdpaAttention"]),
        ),
    ],
    "GQA012": [
        ("one row short", lambda: Case(truncated_view(), "error", says=["12288", "12192"])),
        ("one element too far", lambda: Case(one_element_too_far(), "error", says=["12289", "12288"])),
        ("storage shorter than declared", lambda: Case(short_storage(), "error", says=["24576", "24832"])),
    ],
    "GQA013": [
        (
            "rows cut as a view",
            lambda: Case(rows_cut_as_a_view(), "warning", says=["24.58 KB", "12.29 KB"], fixes=["clone"]),
        ),
        ("columns cut as a view", lambda: Case(columns_cut_as_a_view(), "warning", says=["24.58 KB", "12.29 KB"])),
        ("tied", lambda: Case(tied_rows_cut_as_a_view(), "warning", container="state-dict", says=["2 tensors"])),
        ("in a state dict", lambda: Case(rows_cut_as_a_view(), "warning", container="state-dict")),
    ],
    "GQA014": [
        ("missing shard", lambda: Case(without_a_shard, "error", says=["1 of 3 shard files"])),
        ("unlisted tensor", lambda: Case(without_an_entry, "error", says=["does not list"])),
        ("wrong total", lambda: Case(with_total_size(2), "warning", says=["total_size"])),
    ],
    "GQA015": [("key twice", lambda: Case(config_saying_it_twice, "error", says=["num_key_value_heads"]))],
}
NEARLY: Cases = {
    "GQA010": [
        ("healthy module", lambda: Case(sketch_llama())),
        (
            "partial of checkpoint",
            lambda: Case(calling("functools", "partial", Global("torch.utils.checkpoint", "checkpoint"))),
        ),
        ("path in a config", lambda: Case(calling("pathlib", "PosixPath", "a", "b"))),
        ("llm-pruner's class", lambda: Case(naming("LLMPruner.models.hf_llama.modeling_llama", "LlamaAttention"))),
        ("storage class", lambda: Case(naming("torch", "BFloat16Storage"))),
        *((path.stem, lambda path=path: Case(path)) for path in sorted(OLD_PICKLES.glob("*.bin"))),
    ],
    "GQA011": [("state dict in a pickle", lambda: Case(sketch_llama(), container="state-dict"))],
    "GQA012": [
        ("view to the last element", lambda: Case(strided_to_the_last_element())),
        ("storage longer than needed", lambda: Case(rows_cut_as_a_view())),
        ("healthy folder", lambda: Case(sketch_llama(), container="folder")),
    ],
    "GQA013": [
        ("tied weights", lambda: Case(sketch_llama(tie=True))),
        ("two views of one storage", lambda: Case(gate_and_up_in_one_storage())),
        ("every weight cloned", lambda: Case(cut_and_cloned())),
    ],
    "GQA014": [
        ("all shards", lambda: Case(sharded)),
        ("total of all tensors", lambda: Case(with_total_size(0))),
    ],
    "GQA015": [
        ("key once", lambda: Case(sketch_llama(), container="folder")),
        ("tied weights", lambda: Case(sketch_llama(tie=True), container="folder")),
    ],
}


def cut_and_cloned() -> Sketch:
    sketch = sketch_llama()
    sketch.cut_mlp(1, 64)
    return sketch


@pytest.mark.parametrize(("code", "make"), cases(FIRES))
def test_file_rule_on_its_fault_fires(code: str, make: Make) -> None:
    make().fires(code)


@pytest.mark.parametrize(("code", "make"), cases(NEARLY))
def test_file_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
    make().silent(code)


KNOWN = (
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch.FloatStorage", "torch.storage.UntypedStorage", "torch.bfloat16", "torch.nn.modules.linear.Linear",
    "__builtin__.set",
    "tokenizers.Tokenizer", "tokenizers.models.Model", "tokenizers.AddedToken", "_codecs.encode",
    "transformers.models.llama.modeling_llama.LlamaSdpaAttention", "transformers.tokenization_utils.Trie",
    "transformers.tokenization_utils_fast.PreTrainedTokenizerFast",
    "transformers.tokenization_utils_tokenizers.TokenizersBackend",
    "transformers.generation.configuration_utils.GenerationConfig", "transformers.activations.SiLUActivation",
    "transformers.modeling_rope_utils._compute_llama3_parameters", "peft.peft_model.PeftModelForCausalLM",
    "peft.tuners.lora.layer.Linear", "LLMPruner.models.hf_llama.modeling_llama.LlamaForCausalLM", "torch._C._nn.gelu",
    "torch.per_tensor_affine", "argparse.Namespace", "torchao.quantization.Int8Tensor", "uuid.UUID",
)  # fmt: skip
UNKNOWN = (
    "transformers_modules.internlm.internlm2-7b.0a1b.modeling_internlm2.InternLM2ForCausalLM", "__main__.MyModel",
    "torchx.nn.Linear", "torch.nnx.Linear", "transformers.models.llama.modeling_llama.apply_rotary_pos_emb",
    "torch.nn.modules.linear.Linear.forward", "transformers.modeling_utils.PreTrainedModel.from_pretrained",
    "torch.compile", "project.code.Net", "project.eval.Net", "test.net.Net", "collections.abc.Mapping", "builtins.type",
    "torch.nn.modules.linear.Line\u0430r", "evil.collections.OrderedDict", "", ".", "torch", "builtins",
    "transformers.activations.torch",
)  # fmt: skip
DANGEROUS = (
    "os.system", "posix.system", "nt.system", "subprocess.Popen", "sys.modules", "builtins.exec", "__builtin__.eval",
    "builtins.__import__", "builtins.open", "builtins.compile", "shutil.rmtree", "socket.socket", "runpy.run_path",
    "importlib.import_module", "pickle.loads", "_pickle.loads", "ctypes.CDLL", "webbrowser.open", "pty.spawn",
    "pip._internal.main", "torch.hub.load", "torch.load", "torch.serialization.load", "torch.jit.load",
    "numpy.testing._private.utils.runstring", "code.InteractiveInterpreter.runcode", "timeit.timeit", "cProfile.runctx",
    "asyncio.unix_events._UnixSubprocessTransport", "multiprocessing.util.spawnv_passfds", "operator.attrgetter",
    "operator.methodcaller", "_operator.attrgetter", "pkgutil.resolve_name", "pydoc.locate", "functools.reduce",
    "torch.utils.collect_env.run", "torch.fx.graph_module.reduce_graph_module", "numpy.__builtins__",
    "torch.storage._load_from_bytes", "transformers.dynamic_module_utils.get_class_from_dynamic_module",
    "transformers.modeling_utils.os", "torch.serialization.os.system", "collections.OrderedDict.__class__",
    "torch.nn.modules.linear.Linear.__init__.__globals__", "transformers.utils.hub.os.system",
    "numpy.core._internal.sys.modules", "builtins.__dict__",
)  # fmt: skip


@pytest.mark.parametrize("path", KNOWN)
def test_classify_what_real_checkpoints_hold_is_known(path: str) -> None:
    assert classify(path) == ("known", "")


@pytest.mark.parametrize("path", UNKNOWN)
def test_classify_what_is_on_no_list_is_unknown(path: str) -> None:
    assert classify(path)[0] == "unknown"


@pytest.mark.parametrize("path", DANGEROUS)
def test_classify_what_runs_code_is_dangerous_with_a_reason(path: str) -> None:
    standing, reason = classify(path)
    assert standing == "dangerous"
    assert reason


def test_classify_a_walk_past_a_known_class_says_so() -> None:
    for path in (
        "torch.nn.modules.linear.Linear.forward",
        "transformers.modeling_utils.PreTrainedModel.from_pretrained",
    ):
        assert "past a class" in classify(path)[1]


def test_unrecognised_global_with_terminal_codes_in_its_name_shows_them_escaped() -> None:
    finding = fires(naming("house\x1b[31m", "Net"), "GQA010")
    assert "\x1b" not in finding.message
    assert r"\x1b" in finding.message


def test_unrecognised_global_in_safetensors_is_skipped() -> None:
    skips(sketch_llama(), "GQA010", needs="pickle", container="folder")
    skips(sketch_llama(), "GQA013", needs="torch-file", container="folder")
    skips(sketch_llama(), "GQA014", needs="shards", container="folder")


def test_storage_bounds_without_word_from_the_reader_goes_by_the_numbers() -> None:
    checkpoint = read(sketch_llama())
    changed = dict(checkpoint.tensors)
    old = changed[UP]
    assert old.storage is not None
    changed[UP] = replace(old, storage_offset=1)
    past = fires(replace(checkpoint, tensors=changed), "GQA012", severity="error", count=1)
    assert past.tensors == (UP,)
    assert (past.expected.value, past.actual.value) == (24576, 24578)  # type: ignore[union-attr]
    changed[UP] = replace(old, strides=(-96, 1))
    fires(replace(checkpoint, tensors=changed), "GQA012", says=["-24384"])
    changed[UP] = replace(old, storage=replace(old.storage, declared_nbytes=24580))
    fires(replace(checkpoint, tensors=changed), "GQA012", says=["24576", "24580"], count=1)
    changed[UP] = replace(old, shape=(0, 96))
    silent(replace(checkpoint, tensors=changed), "GQA012")


def test_oversized_storage_of_an_8b_layer_counts_megabytes() -> None:
    checkpoint = read(sketch_llama())
    storage_ = StorageInfo("m.bin", "big", 0, 4096 * 4096 * 2, 4096 * 4096 * 2)
    old = checkpoint.tensors[UP]
    views = {UP: replace(old, shape=(3072, 4096), strides=(4096, 1), storage=storage_)}
    finding = fires(replace(checkpoint, tensors={**checkpoint.tensors, **views}), "GQA013", severity="warning")
    assert finding.message.startswith(
        "33.55 MB are stored for 1 tensor that use 25.17 MB: 8.39 MB of what was cut away"
    )
    whole = {
        **views,
        "other": replace(
            old, name="other", shape=(1024, 4096), strides=(4096, 1), storage_offset=3072 * 4096, storage=storage_
        ),
    }
    silent(replace(checkpoint, tensors={**checkpoint.tensors, **whole}), "GQA013")


def test_file_rules_on_a_healthy_module_leave_only_the_note() -> None:
    assert {code for code in codes(sketch_llama()) if code.startswith("GQA0")} == {"GQA011"}


def read(sketch: Sketch, container: str = "module") -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        return open_checkpoint(write(sketch, Path(folder), container))
