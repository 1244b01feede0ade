"""The gate of a repository: checkpoints and per-path settings from a file, and a baseline of what is known."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from gqacheck.cli import main
from gqacheck.settings import find_settings
from gqacheck.testing.sketch import sketch_llama


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sound and a broken checkpoint under ``out/``, from which commands are run."""
    (tmp_path / "out").mkdir()
    sketch_llama(n_layers=2).write_module(tmp_path / "out" / "sound.bin")
    broken = sketch_llama(n_layers=2)
    broken.resize("model.layers.1.mlp.gate_proj", rows=96)
    broken.write_module(tmp_path / "out" / "broken.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return main(list(words), out, err), out.getvalue(), err.getvalue()


def settings(repository: Path, text: str) -> None:
    (repository / "gqacheck.toml").write_text(text, encoding="utf-8")


def test_checkpoints_of_the_settings_are_checked_when_none_is_named(repository: Path) -> None:
    settings(repository, 'checkpoints = ["out/*.bin"]\n')
    code, out, _ = run()
    assert code == 1
    assert "out/broken.bin" in out
    assert "2 checkpoints: 1 failed, 1 passed" in out
    assert run("out/sound.bin")[0] == 0  # what is named on the command line is what is checked


@pytest.mark.parametrize("pattern", ["out/*.safetensors", "gone/", "out/[.bin"])
def test_pattern_that_matches_nothing_is_a_usage_error(repository: Path, pattern: str) -> None:
    settings(repository, f'checkpoints = ["out/sound.bin", "{pattern}"]\n')
    code, out, err = run()
    assert (code, out) == (2, "")
    assert f"checkpoints: '{pattern}' matches nothing in {repository}" in err


def test_settings_of_a_path_hold_for_what_matches_and_the_last_one_wins(repository: Path) -> None:
    settings(
        repository,
        'checkpoints = ["out/*"]\nrequire = ["shapes"]\n'
        '[[paths]]\nmatch = "out/b*"\nignore = ["GQA3"]\nexpect-layers = 7\n'
        '[[paths]]\nmatch = "out/broken.bin"\nexpect-layers = 2\n',
    )
    found = find_settings(str(repository))
    assert found.of("out/sound.bin") == {"require": ("shapes",)}
    assert found.of("out/broken.bin") == {"require": ("shapes",), "ignore": ("GQA3",), "expect_layers": 2}
    assert found.of(str(repository / "out" / "broken.bin"))["expect_layers"] == 2
    assert run()[0] == 0
    assert run("out/broken.bin", "--expect-layers", "3")[0] == 1  # the command line wins


def test_settings_of_a_folder_hold_for_what_lies_in_it(repository: Path) -> None:
    settings(repository, '[[paths]]\nmatch = "out"\nexpect-layers = 9\n')
    assert find_settings(str(repository)).of("out/sound.bin") == {"expect_layers": 9}
    assert find_settings(str(repository)).of("outside.bin") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('checkpoint = ["a"]', "there is no setting 'checkpoint'; did you mean checkpoints?"),
        ("checkpoints = 3", "checkpoints is a list of paths or globs"),
        ('checkpoints = [""]', "checkpoints is a list of paths or globs"),
        ("paths = 3", "paths is a list of tables"),
        ("[[paths]]\nexpect-layers = 3", 'a table of paths has no match = "GLOB"'),
        ('[[paths]]\nmatch = "a"\nexpect-layer = 3', "there is no setting 'expect-layer'; did you mean expect-layers?"),
        ('[[paths]]\nmatch = "a"\nbaseline = "b"', "baseline holds for the whole run and cannot stand under paths"),
        ('require = ["shape"]', "gqacheck.toml: require takes shapes, pairing"),
        ('select = ["GQA9"]', "gqacheck.toml: select: no rule is called 'GQA9'"),
        ('ignore = ["nonsense"]', "gqacheck.toml: ignore: no rule is called 'nonsense'"),
        ("update-baseline = true", "there is no setting 'update-baseline'"),
    ],
)
def test_settings_that_make_no_sense_are_named(repository: Path, text: str, says: str) -> None:
    settings(repository, text + "\n")
    code, _, err = run("out/sound.bin")
    assert code == 2
    assert says in err


def test_folder_with_signs_of_a_glob_in_its_name_is_meant_as_it_is(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, copied in (("c[17]", "broken.bin"), ("c1", "sound.bin")):
        (repository / name / "out").mkdir(parents=True)
        (repository / name / "out" / "x.bin").write_bytes((repository / "out" / copied).read_bytes())
    here = repository / "c[17]"
    monkeypatch.chdir(here)
    settings(here, 'checkpoints = ["out/*"]\n')
    assert run("--quiet")[1].splitlines()[-1].startswith("out/x.bin: FAIL")
    settings(here, 'checkpoints = ["out/*"]\n[[paths]]\nmatch = "out/*"\nignore = ["GQA3"]\n')
    assert "PASS" in run("--quiet")[1]


def test_settings_of_a_path_hold_for_a_link_to_it(repository: Path) -> None:
    os.symlink("out/broken.bin", repository / "link.bin")
    assert run("link.bin")[0] == 1
    settings(repository, '[[paths]]\nmatch = "out/b*"\nignore = ["GQA3"]\n')
    assert run("link.bin")[0] == 0


def test_pattern_of_paths_that_fits_nothing_is_told(repository: Path) -> None:
    settings(repository, '[[paths]]\nmatch = "uot/b*"\n[[paths]]\nmatch = "*brok*"\n[[paths]]\nmatch = "out/s*"\n')
    code, out, _ = run("out/sound.bin")
    assert code == 0
    assert f"note: paths: match = 'uot/b*' fits nothing in {repository}\n" in out
    assert out.count("fits nothing") == 1


def test_settings_below_a_link_are_read_where_they_lie(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "far" / "below").mkdir(parents=True)
    (repository / "far" / "x.bin").write_bytes((repository / "out" / "broken.bin").read_bytes())
    (repository / "x.bin").write_bytes((repository / "out" / "sound.bin").read_bytes())
    os.symlink("far/below", repository / "link")
    settings(repository, 'checkpoints = ["link/../x.bin"]\n')
    assert run("--quiet")[0] == 1


def test_folder_that_is_gone_has_no_settings(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "gone").mkdir()
    monkeypatch.chdir(repository / "gone")
    (repository / "gone").rmdir()
    assert run(str(repository / "out" / "sound.bin"))[0] == 0


def test_baseline_lets_known_findings_pass_and_new_ones_fail(repository: Path) -> None:
    code, _, err = run("out/broken.bin", "out/sound.bin", "--baseline", "known.json", "--update-baseline")
    assert code == 0
    assert "known.json now holds" in err
    code, out, _ = run("out/broken.bin", "--baseline", "known.json")
    assert code == 0
    assert "nothing new: " in out
    assert "E GQA301" in out  # known is not hidden
    (found,) = json.loads(run("out/broken.bin", "--baseline", "known.json", "--format", "json")[1])["checkpoints"]
    assert {finding["known"] for finding in found["findings"] if finding["severity"] == "error"} == {True}
    assert found["claims"]["shapes"] == "fail"
    worse = sketch_llama(n_layers=2)
    worse.resize("model.layers.1.mlp.gate_proj", rows=96)
    worse.resize("model.layers.0.mlp.gate_proj", rows=80)
    worse.write_module(repository / "out" / "broken.bin")
    assert run("out/broken.bin", "--baseline", "known.json")[0] == 1


def test_baseline_knows_a_checkpoint_from_wherever_it_is_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    assert run(str(repository / "out" / "broken.bin"), "--baseline", str(repository / "known.json"))[0] == 0
    monkeypatch.chdir(repository / "out")
    assert run("broken.bin", "--baseline", "../known.json")[0] == 0
    os.rename("broken.bin", "other.bin")
    assert run("other.bin", "--baseline", "../known.json")[0] == 1


def test_stale_entries_are_told_and_dropped_by_an_update(repository: Path) -> None:
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    sketch_llama(n_layers=2).write_module(repository / "out" / "broken.bin")
    code, out, _ = run("out/broken.bin", "--baseline", "known.json")
    assert code == 0
    assert "1 stale entry in known.json" in out
    assert "GQA301" in out
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    assert json.loads((repository / "known.json").read_text())["checkpoints"] == {}


def test_update_keeps_what_was_not_checked_this_time(repository: Path) -> None:
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    before = (repository / "known.json").read_text()
    run("out/sound.bin", "--baseline", "known.json", "--update-baseline")
    assert (repository / "known.json").read_text() == before
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline", "--ignore", "GQA301")
    assert "GQA301" in (repository / "known.json").read_text()


def test_baseline_of_a_checkpoint_that_is_gone_is_told_and_dropped_by_a_whole_run(repository: Path) -> None:
    settings(repository, 'baseline = "known.json"\ncheckpoints = ["out/*"]\n')
    assert run("--update-baseline")[0] == 0
    os.rename(repository / "out" / "broken.bin", repository / "out" / "other.bin")
    code, out, _ = run()
    assert code == 1
    assert "1 stale entry" in out
    assert "out/broken.bin is gone" in out
    assert "stale" not in run("out/sound.bin")[1]
    run("out/sound.bin", "--update-baseline")
    assert "out/broken.bin" in (repository / "known.json").read_text()
    run("--update-baseline")
    assert set(json.loads((repository / "known.json").read_text())["checkpoints"]) == {"out/other.bin"}


def test_baseline_behind_a_link_is_written_where_it_lies(repository: Path) -> None:
    (repository / "far.json").write_text('{"schema": "gqacheck-baseline/1", "checkpoints": {}}')
    os.symlink("far.json", repository / "known.json")
    assert run("out/broken.bin", "--baseline", "known.json", "--update-baseline")[0] == 0
    assert (repository / "known.json").is_symlink()
    assert "GQA301" in (repository / "far.json").read_text()


def test_baseline_knows_a_checkpoint_behind_a_link_and_in_a_folder_behind_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    before = (repository / "known.json").read_text()
    os.symlink("out/broken.bin", repository / "link.bin")
    os.symlink(repository, repository.parent / f"{repository.name}-link")
    far = repository.parent / f"{repository.name}-link"
    assert run("link.bin", "--baseline", "known.json")[0] == 0
    assert run(str(far / "out" / "broken.bin"), "--baseline", "known.json")[0] == 0
    assert run("out/broken.bin", "--baseline", str(far / "known.json"))[0] == 0
    assert run("link.bin", "--baseline", "known.json", "--update-baseline")[0] == 0
    assert (repository / "known.json").read_text() == before
    (repository / "known.json").unlink()
    run("out/broken.bin", "--baseline", str(far / "known.json"), "--update-baseline")
    assert (repository / "known.json").read_text() == before
    run("link.bin", "--baseline", "new.json", "--update-baseline")
    assert run("out/broken.bin", "--baseline", "new.json")[0] == 0


def test_baseline_knows_a_folder_by_the_only_weight_file_in_it(repository: Path) -> None:
    (repository / "one").mkdir()
    os.rename(repository / "out" / "broken.bin", repository / "one" / "m.bin")
    for written, asked in (("one", "one/m.bin"), ("one/m.bin", "one")):
        (repository / "known.json").unlink(missing_ok=True)
        run(written, "--baseline", "known.json", "--update-baseline")
        code, out, _ = run(asked, "--baseline", "known.json")
        assert code == 0
        assert "stale" not in out
    run("one", "one/m.bin", "--baseline", "known.json", "--update-baseline")
    assert run("one", "one/m.bin", "--baseline", "known.json")[0] == 0
    os.rename(repository / "one" / "m.bin", repository / "one" / "pytorch_model.bin")
    run("one", "--baseline", "known.json", "--update-baseline")
    (repository / "one" / "copy.bin").write_bytes((repository / "one" / "pytorch_model.bin").read_bytes())
    assert run("one/pytorch_model.bin", "--baseline", "known.json")[0] == 0
    assert run("one/copy.bin", "--baseline", "known.json")[0] == 1  # not what the folder is loaded from
    os.rename(repository / "one" / "pytorch_model.bin", repository / "one" / "m.bin")
    (repository / "one" / "other.bin").write_bytes((repository / "out" / "sound.bin").read_bytes())
    run("one/m.bin", "--baseline", "known.json", "--update-baseline")
    assert "stale" not in run("one/other.bin", "--baseline", "known.json")[1]


def test_baseline_in_the_settings_is_meant_from_their_folder_before_it_is_there(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(repository, 'baseline = "known.json"\n')
    monkeypatch.chdir(repository / "out")
    assert run("broken.bin", "--update-baseline")[0] == 0
    assert (repository / "known.json").exists()


def test_baseline_in_the_settings_is_meant_from_their_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("out/broken.bin", "--baseline", "known.json", "--update-baseline")
    settings(repository, 'baseline = "known.json"\ncheckpoints = ["out/broken.bin"]\n')
    assert run()[0] == 0
    monkeypatch.chdir(repository / "out")
    assert run()[0] == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file known.json; --update-baseline writes one"),
        ("{}", "it does not say schema gqacheck-baseline/1"),
        ("not json", "is no baseline of gqacheck"),
        ('{"schema": "gqacheck-baseline/1", "checkpoints": {"a": 3}}', "the entries of a are no list"),
        ('{"schema": "gqacheck-baseline/1", "checkpoints": {"a": [{}]}}', "an entry of a has no fingerprint and code"),
        ("[" * 100_000, "is no baseline of gqacheck"),
    ],
)
def test_baseline_that_is_none_is_a_usage_error(repository: Path, content: str | None, says: str) -> None:
    if content is not None:
        (repository / "known.json").write_text(content)
    code, _, err = run("out/broken.bin", "--baseline", "known.json")
    assert code == 2
    assert says in err
    if content is not None:
        assert run("out/broken.bin", "--baseline", "known.json", "--update-baseline")[0] == 2
        assert (repository / "known.json").read_text() == content


def test_update_without_a_file_and_a_checkpoint_as_baseline_are_usage_errors(repository: Path) -> None:
    assert "--update-baseline needs the file" in run("out/broken.bin", "--update-baseline")[2]
    code, _, err = run("out/broken.bin", "--baseline", "out/sound.bin", "--update-baseline")
    assert code == 2
    assert "is no baseline" in err


def test_update_of_what_could_not_be_checked_is_still_exit_3(repository: Path) -> None:
    (repository / "out" / "text.bin").write_text("not a checkpoint at all")
    assert run("out/text.bin", "--baseline", "known.json", "--update-baseline")[0] == 3
