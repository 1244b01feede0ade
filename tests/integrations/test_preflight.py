"""``PreflightCallback`` in a real Trainer: step 0 is never reached by a model that is not sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import gqacheck
from fixtures.zoo.surgery import cut_attention, cut_groups
from gqacheck.api import UnsoundModelError
from gqacheck.errors import UsageError
from gqacheck.integrations.transformers import PreflightCallback

PARENT = Path(__file__).resolve().parents[2] / "fixtures" / "llama-32x8"
KEPT = (0, 2, 3, 4, 6, 7)


class Tokens(torch.utils.data.Dataset):
    """A few rows of ids, and a count of how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        self.read += 1
        ids = torch.arange(16) + number
        return {"input_ids": ids, "labels": ids}


def train(model: Any, callback: PreflightCallback, folder: Path) -> Tokens:
    data = Tokens()
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    return data


def child(broken: bool) -> Any:
    model, _ = gqacheck.load_model(PARENT)
    if broken:
        for layer in model.model.layers:
            cut_attention(layer, range(24), KEPT)
    else:
        cut_groups(model, KEPT)
    return model


def test_sound_model_beside_its_parent_is_trained(tmp_path: Path) -> None:
    callback = PreflightCallback(base=PARENT)
    assert train(child(broken=False), callback, tmp_path).read > 0
    assert callback.report.exit_code == 0


def test_broken_pairing_stops_before_the_first_step_with_the_report(tmp_path: Path) -> None:
    model = child(broken=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = Tokens()
    callback = PreflightCallback(base=PARENT)
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no"),
        train_dataset=data,
        callbacks=[callback],
    )
    with pytest.raises(UnsoundModelError, match="training was not started: the model is not sound") as caught:
        trainer.train()
    assert "GQA601 head-regrouped" in str(caught.value)
    assert trainer.state.global_step == 0
    assert data.read == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_pairing_is_insisted_on_and_can_be_waived(tmp_path: Path) -> None:
    with pytest.raises(UnsoundModelError, match="not started: the model could not be shown to be sound") as caught:
        train(child(broken=False), PreflightCallback(), tmp_path)
    assert "pairing: not checked" in str(caught.value)
    assert "PreflightCallback(require=('shapes',))" in str(caught.value)
    assert train(child(broken=False), PreflightCallback(require=("shapes",)), tmp_path).read > 0


@pytest.mark.parametrize("broken", [True, False])
def test_model_with_lora_on_it_is_seen_through(broken: bool, tmp_path: Path) -> None:
    tuned = get_peft_model(child(broken), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if broken:
        with pytest.raises(UnsoundModelError, match="GQA601"):
            train(tuned, PreflightCallback(base=PARENT), tmp_path)
    else:
        assert train(tuned, PreflightCallback(base=PARENT), tmp_path).read > 0


def test_runtime_checks_run_with_the_trainers_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = gqacheck.load_model(PARENT)
    callback = PreflightCallback(base=PARENT, ppl=["smoke"], limit=3, require=("ppl",))
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(model, arguments, train_dataset=Tokens(), processing_class=tokenizer, callbacks=[callback]).train()
    assert callback.report.runtime.perplexities[0].relative.ratio == pytest.approx(1.0, abs=1e-6)
    assert model.training


@pytest.mark.parametrize("mark", ["ds_id", "_local_tensor", "_flat_param"])
def test_sharded_parameters_are_refused_and_the_files_checked_instead(mark: str, tmp_path: Path) -> None:
    model = child(broken=False)
    if mark == "_flat_param":
        model.model.register_parameter(mark, torch.nn.Parameter(torch.zeros(4)))
    else:
        setattr(next(model.parameters()), mark, 0)
    with pytest.raises(UsageError, match=r"the parameters are sharded .* checkpoint='pruned/'"):
        PreflightCallback(base=PARENT).on_train_begin(None, None, None, model=model)
    saved = tmp_path / "child.bin"
    torch.save({"model": child(broken=True)}, saved)
    with pytest.raises(UnsoundModelError, match="GQA601"):
        PreflightCallback(base=PARENT, checkpoint=saved).on_train_begin(None, None, None, model=model)


def test_packed_weights_are_not_called_unsound_and_the_files_are_named() -> None:
    model = child(broken=False)
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):  # as bitsandbytes holds four bits a weight
            packed = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UnsoundModelError, match="not started: the model could not be shown to be sound") as caught:
        PreflightCallback(base=PARENT).on_train_begin(None, None, None, model=model)
    assert "PreflightCallback(base='parent/', checkpoint='pruned/') checks the files" in str(caught.value)


def test_parent_that_is_not_there_is_no_verdict_on_the_model() -> None:
    with pytest.raises(UnsoundModelError, match="not started: the model could not be shown to be sound") as caught:
        PreflightCallback(base="nowhere/").on_train_begin(None, None, None, model=child(broken=False))
    assert caught.value.report.error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bsae": 3}, "PreflightCallback has no option 'bsae'; did you mean base"),
        ({"require": "shape"}, "require takes shapes, pairing, .* not 'shape'; did you mean shapes"),
        ({"require": ("shapes", "pairings")}, "require takes shapes, pairing, .* not 'pairings'"),
        ({"require": None}, "require takes names, such as .* not None"),
        ({"require": (3,)}, "require takes names, not '3'"),
        ({"limit": "many"}, "limit takes a whole number"),
        ({"model": 3}, "PreflightCallback has no option 'model'"),
        ({"device": "cuda"}, "PreflightCallback has no option 'device'"),
        ({"tokenizer": "parent/"}, "tokenizer takes the tokenizer itself"),
        ({"checkpoint": "pruned/", "base": torch.nn.Linear(1, 1)}, "base takes a path .*, not a Linear"),
        ({"checkpoint": "pruned/", "tokenizer": torch.nn.Linear(1, 1)}, "tokenizer takes a path .*, not a Linear"),
        ({"checkpoint": 3}, "checkpoint takes a path .*, not a int"),
        ({"checkpoint": "pruned/", "path": "x"}, "PreflightCallback has no option 'path'"),
    ],
)
def test_option_that_makes_no_sense_is_told_before_there_is_a_trainer(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        PreflightCallback(**options)
    assert "--" not in str(caught.value)


def test_names_to_insist_on_may_stand_in_one_string() -> None:
    assert PreflightCallback(require="shapes").require == ("shapes",)
    assert PreflightCallback(require="shapes, pairing").require == ("shapes", "pairing")
    assert PreflightCallback(checkpoint="pruned/", device="cpu").options == {"device": "cpu"}
