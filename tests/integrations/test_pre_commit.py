"""The pre-commit hook: by hand, and for real through ``pre-commit try-repo``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gqacheck.cli import main as check
from gqacheck.integrations.pre_commit import checkpoints_of, main
from gqacheck.testing.sketch import Sketch, sketch_llama, tensor
from gqacheck.testing.writers import write_safetensors, write_torch_zip

ROOT = Path(__file__).resolve().parents[2]


def broken_sketch():
    made = sketch_llama(n_layers=2)
    made.resize("model.layers.1.mlp.gate_proj", rows=96)
    return made


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sketch_llama(n_layers=2).write_folder(tmp_path / "sound", shards=2)
    broken_sketch().write_folder(tmp_path / "broken", shards=2)
    broken_sketch().write_module(tmp_path / "alone.bin")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_stand_for_the_checkpoint_they_belong_to(repository: Path) -> None:
    shards = sorted(path.name for path in (repository / "sound").glob("*.safetensors"))
    assert len(shards) == 2
    files = [
        f"sound/{shards[0]}",
        f"sound/{shards[1]}",
        "sound/config.json",
        "alone.bin",
        "app/config.json",
        "gone.bin",
    ]
    assert checkpoints_of(files) == ["alone.bin", "sound"]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["sound/config.json"], 0),
        (["broken/model.safetensors.index.json"], 1),
        (["alone.bin"], 1),
        (["app/config.json", "README.md"], 0),
        ([], 0),
    ],
)
def test_hook_fails_on_what_gqacheck_fails_on(files: list[str], code: int, repository: Path, capsys) -> None:
    assert main(["--quiet", *files]) == code
    assert ("FAIL" in capsys.readouterr().out) == (code == 1)


def write_tensors(path: Path, *names: str) -> None:
    """A sound container that holds these names and no language model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor((4, 4)) for name in names}
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        write_torch_zip(path, tensors)


@pytest.fixture
def others(repository: Path) -> Path:
    """What else lies in a repository: files that end like weights and are no language model."""
    (repository / "app" / "firmware.bin").write_bytes(b"\xfe\xed\xfa\xce" * 64)
    write_tensors(repository / "resnet.pt", "layer1.0.conv1.weight", "fc.weight")
    write_tensors(repository / "lora" / "adapter_model.safetensors", "base.model.layers.0.q_proj.lora_A.weight")
    (repository / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    write_tensors(repository / "bert" / "model.safetensors", "bert.encoder.layer.0.attention.self.query.weight")
    (repository / "bert" / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    return repository


@pytest.mark.parametrize(
    "file",
    ["app/config.json", "app/firmware.bin", "resnet.pt", "lora/adapter_model.safetensors", "bert/config.json"],
)
def test_file_of_no_language_model_blocks_nothing_and_is_named(file: str, others: Path, capsys) -> None:
    assert main(["--quiet", file]) == 0
    told = capsys.readouterr().err
    if file == "app/config.json":
        assert told == ""
    else:
        assert told.count("\n") == 1
        assert "was not checked: " in told
    assert main(["--quiet", file, "sound/config.json"]) == 0
    assert main(["--quiet", file, "alone.bin"]) == 1


def plain_layers(stem: str) -> dict[str, object]:
    """Layers of an encoder, or of an encoder-decoder's decoder: as many KV heads as query heads."""
    made = {}
    for n in range(2):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"):
            made[f"{stem}.{n}.{name}.weight"] = tensor((16, 16))
    return made


def write_other(folder: Path, stem: str, config: dict[str, object] | None, name: str = "model.safetensors") -> None:
    folder.mkdir(exist_ok=True)
    write = write_safetensors if name.endswith(".safetensors") else write_torch_zip
    write(folder / name, plain_layers(stem))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


WHISPER = {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "is_encoder_decoder": True}
CLIP = {"architectures": ["CLIPModel"], "text_config": {"model_type": "clip_text_model", "num_attention_heads": 2}}


@pytest.mark.parametrize(
    ("stem", "config", "told"),
    [
        ("model.decoder.layers", WHISPER, "WhisperForConditionalGeneration is an encoder-decoder"),
        ("text_model.encoder.layers", CLIP, "CLIPModel is no causal language model"),
        ("model.decoder.layers", None, "its layers are of no known family"),
        ("layers", None, "its layers are of no known family"),
    ],
)
def test_model_that_is_no_causal_language_model_is_named_with_the_reason(
    stem: str, config: dict[str, object] | None, told: str, repository: Path, capsys
) -> None:
    name = "model.safetensors" if config else "m.pt"
    write_other(repository / "other", stem, config, name)
    assert main(["--quiet", f"other/{name}"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"was not checked: {told}" in err
    (repository / "gqacheck.toml").write_text('checkpoints = ["other"]\n')
    main(["--quiet", f"other/{name}"])
    assert "other" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["GqacheckLlamaForCausalLM"], "model_type": "gqacheck_llama"},
        {"architectures": ["OwnForCausalLM"], "model_type": "own"},
        {"auto_map": {"AutoModelForCausalLM": "own.Own"}, "model_type": "own"},
        {"architectures": ["LlamaModel"], "model_type": "llama"},
        {"architectures": ["Own"], "model_type": "own"},  # the config speaks of KV heads
        {"architectures": ["Own"], "model_type": "own", "num_key_value_heads": None},  # the shapes do
    ],
)
def test_language_model_whose_class_has_a_name_of_its_own_is_checked(
    config: dict[str, object], repository: Path, capsys
) -> None:
    shares = config.get("num_key_value_heads", 0) is None
    made = sketch_llama(n_layers=2) if shares else sketch_llama(n_layers=2, n_kv_heads=6, n_q_heads=6, head_dim=16)
    if config.get("architectures") != ["Own"]:
        del made.config["num_key_value_heads"]
    made.config = {key: value for key, value in made.config.items() if key != "architectures"} | config
    made.config = {key: value for key, value in made.config.items() if value is not None}
    made.write_folder(repository / "own")
    main(["--quiet", "own/config.json"])
    assert "own: " in capsys.readouterr().out


@pytest.mark.parametrize("named", ["out", "out/model.bin"])
def test_hook_knows_what_the_gate_knows(named: str, repository: Path, capsys) -> None:
    """The settings may name the folder, and the hook the file in it; or the other way round."""
    (repository / "out").mkdir()
    broken_sketch().write_module(repository / "out" / "model.bin")
    (repository / "gqacheck.toml").write_text(
        f'checkpoints = ["{named}"]\nbaseline = "known.json"\n[[paths]]\nmatch = "{named}"\nexpect-layers = 2\n'
    )
    assert check(["--update-baseline"]) == 0
    assert main(["--quiet", "out/model.bin"]) == 0
    assert f"{named}: PASS" in capsys.readouterr().out
    assert list(json.loads((repository / "known.json").read_text())["checkpoints"]) == [named]
    (repository / "out" / "config.json").write_text('{"model_type": "llama"}')
    assert main(["--quiet", "out/config.json"]) in (0, 1)
    assert f"{named}: " in capsys.readouterr().out


def test_file_that_the_settings_name_is_checked_whatever_it_is(others: Path, capsys) -> None:
    (others / "gqacheck.toml").write_text('checkpoints = ["*.pt"]\n')
    assert main(["--quiet", "resnet.pt"]) == 3
    assert main(["--quiet", "lora/adapter_model.safetensors"]) == 0
    assert "resnet.pt: COULD NOT CHECK" in capsys.readouterr().out


@pytest.mark.parametrize("below", ["original/consolidated.00.pth", "checkpoint-5/optimizer.pt", "training_args.bin"])
def test_what_a_model_folder_leaves_alone_stands_for_the_folder(below: str, repository: Path) -> None:
    write_tensors(repository / "sound" / below, "layers.0.attention.wq.weight")
    assert checkpoints_of([f"sound/{below}"]) == ["sound"]
    assert main(["--quiet", f"sound/{below}"]) == 0


def test_checkpoint_below_a_model_folder_or_beside_its_weights_is_checked_itself(repository: Path) -> None:
    sketch_llama(n_layers=2).write_folder(repository)  # the repository is a model folder, as on the hub
    broken_sketch().write_folder(repository / "checkpoint-9")
    for name in ("out/pruned.bin", "pruned.bin", "sound/pruned.bin"):
        (repository / name).parent.mkdir(exist_ok=True)
        broken_sketch().write_module(repository / name)
        assert checkpoints_of([name]) == [name]
        assert main(["--quiet", name]) == 1
    assert checkpoints_of(["checkpoint-9/model.safetensors", "model.safetensors"]) == [".", "checkpoint-9"]


def test_config_beside_several_weight_files_is_held_against_each(repository: Path) -> None:
    for name in ("a.bin", "b.bin"):
        sketch_llama(n_layers=2).write_module(repository / "app" / name)
    (repository / "app" / "config.json").write_text('{"model_type": "llama"}')
    assert checkpoints_of(["app/config.json"]) == ["app/a.bin", "app/b.bin"]
    assert checkpoints_of(["app/b.bin"]) == ["app/b.bin"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def break_one(made: Sketch, folder: Path, how: str) -> str:
    """A checkpoint that cannot be read; the file that the commit touches."""
    if how == "truncated zip":
        made.write_module(folder / "cut.bin")
        cut(folder / "cut.bin", 3000)
        return "cut.bin"
    made.write_folder(folder / "m")
    weights = folder / "m" / "model.safetensors"
    if how == "malformed header":
        weights.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    elif how == "config cut short":
        cut(folder / "m" / "config.json", 20)
        return "m/config.json"
    elif how == "pointer of Git LFS":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    elif how == "empty":
        cut(weights, 0)
    elif how == "shard without the others":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        return "model-00001-of-00002.safetensors"
    elif how == "names of no layout":
        write_tensors(weights, "a.weight")
        assert json.loads((folder / "m" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    elif how == "page in the place of weights":
        (folder / "x.safetensors").write_text("<!doctype html><title>log in</title>")
        return "x.safetensors"
    elif how == "pointer of Git LFS, alone":
        (folder / "x.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
        return "x.bin"
    return "m/model.safetensors"


@pytest.mark.parametrize(
    "how",
    ["truncated zip", "malformed header", "config cut short", "pointer of Git LFS", "pointer of Git LFS, alone",
     "empty", "shard without the others", "page in the place of weights", "names of no layout"],
)  # fmt: skip
def test_checkpoint_that_cannot_be_read_blocks(how: str, repository: Path, capsys) -> None:
    file = break_one(sketch_llama(n_layers=2), repository, how)
    assert main(["--quiet", file]) == 3
    assert "COULD NOT CHECK" in capsys.readouterr().out


def test_index_whose_shard_is_missing_blocks_without_a_config(repository: Path) -> None:
    (repository / "sound" / "config.json").unlink()
    next((repository / "sound").glob("*00002-of-00002.safetensors")).unlink()
    assert checkpoints_of(["sound/model.safetensors.index.json"]) == ["sound/model.safetensors.index.json"]
    assert main(["--quiet", "sound/model.safetensors.index.json"]) != 0


def test_value_that_is_a_word_of_its_own_is_a_usage_error_with_the_right_spelling(repository: Path, capsys) -> None:
    for words, told in (
        (["--base", "sound"], "write --base=sound"),
        (["--base"], "write --base=PARENT"),
        (["--ppl", "held-out.txt"], "write --ppl=held-out.txt"),
    ):
        assert main([*words, "alone.bin"]) == 2
        assert told in capsys.readouterr().err
    assert main(["--base=sound", "--quiet", "alone.bin"]) == 1


def test_file_whose_name_begins_with_a_dash_is_a_file(repository: Path, capsys) -> None:
    broken_sketch().write_module(repository / "-x.bin")
    assert main(["--quiet", "-x.bin"]) == 1
    assert "-x.bin: FAIL" in capsys.readouterr().out
    (repository / "--ignore=GQA3").touch()
    assert main(["--quiet", "--ignore=GQA3", "alone.bin"]) == 0  # an option stays one, whatever files are called
    assert main(["--no-such.bin", "alone.bin"]) == 2


def test_hook_definition_matches_the_files_that_it_is_for() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    pattern = re.compile(hook["files"])
    for path in ("a/model.safetensors", "x.bin", "a/config.json", "config.json", "a/model.safetensors.index.json"):
        assert pattern.search(path), path
    for path in ("a/tsconfig.json", "binary.py", "a/config.json.bak"):
        assert not pattern.search(path), path


def test_hook_runs_through_pre_commit_itself(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As ``pre-commit try-repo`` does it: an environment of its own, without torch, from a clone of this repository."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed here")
    source = tmp_path_factory.mktemp("source") / "gqacheck"
    source.mkdir()
    for name in ("gqacheck", "pruners", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    environment = {
        **os.environ,
        "PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("home")),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def run(*words: str, where: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=300, check=False, cwd=where, env=environment
        )

    for folder in (source, repository):
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
            assert run("git", *words, where=folder).returncode == 0
    done = run(
        sys.executable, "-m", "pre_commit", "try-repo", str(source), "gqacheck", "--all-files", "--verbose",
        where=repository,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "alone.bin: FAIL" in done.stdout
    assert "broken: FAIL" in done.stdout
    assert "sound: ok" in done.stdout or "sound: PASS" in done.stdout
    assert "GQA301" in done.stdout
