"""A repository of somebody else, with nothing of gqacheck but its built wheel: plugin, contract kit and callback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gqacheck.testing.sketch import sketch_llama

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"

TOY = '''
"""A pruner of MLP channels, and one that cuts gate and up by different lists."""

import torch
from torch import nn

from gqacheck.testing import PrunerContract


def cut(linear, kept, dim):
    weight = linear.weight.data.index_select(dim, kept).clone()
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, dtype=weight.dtype)
    made.weight.data = weight
    if linear.bias is not None:
        made.bias.data = linear.bias.data[kept].clone() if dim == 0 else linear.bias.data.clone()
    return made


def prune(model, request, wrong=False):
    import copy

    model = copy.deepcopy(model)
    layers = list(model.model.layers)
    widths = set()
    for number in request.layer_range(len(layers)):
        mlp = layers[number].mlp
        width = mlp.down_proj.in_features
        n_kept = max(1, width - round(width * request.ratio))
        kept = torch.arange(width)[:n_kept]
        mlp.gate_proj = cut(mlp.gate_proj, kept, 0)
        mlp.up_proj = cut(mlp.up_proj, kept.flip(0) if wrong else kept, 0)
        mlp.down_proj = cut(mlp.down_proj, kept, 1)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = n_kept
    widths = {layer.mlp.down_proj.in_features for layer in layers}
    if len(widths) == 1:
        model.config.intermediate_size = widths.pop()
    return model


class TestRight(PrunerContract):
    parts = ("mlp",)
    examples = 4

    def prune(self, model, request):
        return prune(model, request)


class TestWrong(PrunerContract):
    parts = ("mlp",)

    def prune(self, model, request):
        return prune(model, request, wrong=True)
'''

TRAINING = """
import sys
import torch
from transformers import Trainer, TrainingArguments

import gqacheck
from gqacheck.integrations.transformers import PreflightCallback

assert gqacheck.__file__.startswith(sys.argv[1]), gqacheck.__file__
parent = sys.argv[2]
model, _ = gqacheck.load_model(parent)
if sys.argv[3] == "broken":
    attention = model.model.layers[2].self_attn
    attention.k_proj.weight.data = attention.k_proj.weight.data.roll(8, 0)  # each KV head at the place of the next
rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 2
arguments = TrainingArguments("out", max_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True)
trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[PreflightCallback(base=parent)])
trainer.train()
print("trained", trainer.state.global_step)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and nothing else; the rest is this environment's."""
    scratch = tmp_path_factory.mktemp("wheel")

    def pip(*words: str) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    pip("wheel", "--no-deps", "--wheel-dir", str(scratch / "dist"), str(ROOT))
    (wheel,) = (scratch / "dist").glob("gqacheck-*.whl")
    pip("install", "--no-deps", "--target", str(scratch / "site"), str(wheel))
    return scratch / "site"


@pytest.fixture
def run(installed: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=tmp_path,
            env=environment,
        )

    return call


def test_plugin_with_workers_and_junit(run, installed: Path, tmp_path: Path) -> None:
    broken = sketch_llama(n_layers=3)
    broken.resize("model.layers.1.mlp.gate_proj", rows=96)
    broken.write_module(tmp_path / "broken.bin")
    sketch_llama(n_layers=3).write_folder(tmp_path / "sound")
    (tmp_path / "pyproject.toml").write_text('[tool.gqacheck]\ncheckpoints = ["sound", "*.bin"]\n')
    (tmp_path / "test_where.py").write_text(
        f"import gqacheck\ndef test_where():\n    assert gqacheck.__file__.startswith({str(installed)!r})\n"
    )
    done = run("-m", "pytest", "-q", "-n", "2", "--junitxml", "out.xml")
    assert "1 failed, 9 passed" in done.stdout, done.stdout + done.stderr
    cases = {
        f"{case.get('classname')} {case.get('name')}": case
        for case in ElementTree.parse(tmp_path / "out.xml").iter("testcase")
    }
    assert [name for name, case in cases.items() if case.find("failure") is not None] == [
        "gqacheck.broken.bin GQA3-mlp[layers 00-02]"
    ]


def test_contract_kit_passes_the_right_toy_and_shrinks_the_wrong_one(run, tmp_path: Path) -> None:
    (tmp_path / "test_toy.py").write_text(TOY)
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toy.py", "-k", "TestRight")
    assert done.returncode == 0, done.stdout[-3000:]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toy.py", "-k", "TestWrong and masked")
    assert done.returncode == 1, done.stdout[-3000:]
    assert "gqacheck" in done.stdout
    layers = [int(number) for number in re.findall(r"n_layers=(\d+)", done.stdout)]
    assert layers
    assert min(layers) == 1


@pytest.mark.parametrize("child", ["sound", "broken"])
def test_callback_in_a_real_trainer(child: str, run, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    done = run("train.py", str(installed), str(FIXTURES / "llama-32x8"), child)
    if child == "sound":
        assert "trained 1" in done.stdout, done.stderr[-2000:]
    else:
        assert done.returncode != 0
        assert "training was not started: the model is not sound" in done.stderr
        assert "GQA60" in done.stderr
        assert "trained" not in done.stdout
