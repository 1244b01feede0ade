"""The command line from outside: exit codes, what goes where, and no traceback whatever happens."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from report_samples import HOSTILE, broken, healthy, report, unreadable

from gqacheck.cli import main
from gqacheck.errors import GqacheckError, MissingDependency, ReadError, UsageError
from gqacheck.report.document import plain
from gqacheck.report.explain import explain, rules_blocks, rules_json
from gqacheck.report.output import Output, write_report
from gqacheck.report.text import render_text
from gqacheck.result import CheckpointReport
from gqacheck.testing.sketch import sketch_llama

SAMPLES = {"good.bin": healthy, "bad.bin": broken, "gone.bin": unreadable}
PIPELINE = import_module("gqacheck.pipeline")
COMMAND = (sys.executable, "-m", "gqacheck")


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file of this repository, and nothing lying about."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by name, without files: the pipeline is tested elsewhere."""

    def check_path(path: str, options: object) -> CheckpointReport:
        return SAMPLES[path](path=path)

    monkeypatch.setattr(PIPELINE, "check_path", check_path)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run(*argv: str, stdout: io.StringIO | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line, run in this process."""
    out, err = stdout or io.StringIO(), io.StringIO()
    code = main(argv, out, err)
    return code, out.getvalue(), err.getvalue()


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> Any:
        raise error

    return fail


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["good.bin"], 0),
        (["bad.bin"], 1),
        (["gone.bin"], 3),
        (["good.bin", "bad.bin"], 1),
        (["gone.bin", "bad.bin", "good.bin"], 3),
    ],
)
def test_main_on_verdicts_returns_the_highest_code(names: list[str], code: int) -> None:
    assert run(*names)[0] == code
    assert run(*names, "--quiet")[0] == code
    assert run(*names, "--format", "json")[0] == code


@pytest.mark.usefixtures("samples")
def test_main_in_a_pipe_writes_the_plain_report_and_nothing_on_stderr() -> None:
    code, out, err = run("bad.bin")
    assert (code, err) == (1, "")
    assert out == render_text(report(broken(path="bad.bin")))


@pytest.mark.usefixtures("samples")
def test_main_on_format_json_writes_one_document() -> None:
    code, out, err = run("good.bin", "bad.bin", "gone.bin", "--format=json")
    made = json.loads(out)
    assert (code, made["exit_code"], err) == (3, 3, "")
    assert [c["verdict"] for c in made["checkpoints"]] == ["pass", "fail", "error"]


@pytest.mark.usefixtures("samples")
def test_main_quiet_writes_one_line_per_checkpoint() -> None:
    _, out, _ = run("good.bin", "bad.bin", "--quiet")
    lines = out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["good.bin", "bad.bin", "2 checkpoints"]
    assert "FAIL  1 error (GQA104)" in lines[1]


@pytest.mark.parametrize(
    "argv", [[], ["--nope"], ["a.bin", "--head-dim", "x"], ["--quiet"], ["explain"], ["rules", "x"]]
)
def test_main_on_nonsense_returns_2_and_complains_on_stderr(argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("gqacheck: ")
    assert "--help" in err


@pytest.mark.parametrize(
    ("argv", "usage"),
    [
        ([], "gqacheck CKPT [CKPT ...] [options]"),
        (["export"], "gqacheck export CKPT OUT"),
        (["repair"], "gqacheck repair CKPT [--base PARENT] -o OUT"),
    ],
)
def test_main_on_nonsense_tells_the_usage_of_the_command_that_was_meant(argv: list[str], usage: str) -> None:
    _, _, complaint = run(*argv)
    assert f"\nusage: {usage}; " in complaint


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["check", "--help"], ["a.bin", "--help"]])
def test_main_on_help_teaches_on_stdout(argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert "exit codes" in out
    assert "examples" in out


def test_main_on_version_prints_it() -> None:
    from gqacheck import __version__

    assert run("--version") == (0, f"gqacheck {__version__}\n", "")


def test_main_on_only_a_corpus_says_that_no_checkpoint_was_given(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    assert "no checkpoint was given; 't.txt' was taken as the text of --ppl" in run("--ppl", "t.txt")[2]


def test_main_on_a_missing_file_returns_3_with_one_line() -> None:
    code, out, _ = run("no-such-file.bin")
    assert code == 3
    assert out.splitlines() == ["COULD NOT CHECK  no-such-file.bin: no such file or folder"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("no device"), 2, "no device"),
        (MissingDependency("--ppl", "run"), 3, "pip install 'gqacheck[run]'"),
        (ReadError(f"odd {HOSTILE}"), 3, "odd a"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 3, "No space left on device"),
    ],
)
def test_main_on_an_exception_returns_its_code_and_one_clean_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    monkeypatch.setattr("gqacheck.settings.find_settings", raising(error))
    got, out, err = run("a.bin")
    assert (got, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert all(part.isprintable() for part in err.split("\n"))


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), ZeroDivisionError("a bug"), AssertionError()])
def test_main_on_a_bug_in_one_checkpoint_still_checks_the_others(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def check_path(path: str, options: object) -> CheckpointReport:
        if path == "buggy.bin":
            raise error
        return healthy(path=path)

    monkeypatch.setattr(PIPELINE, "check_path", check_path)
    code, out, err = run("buggy.bin", "good.bin")
    assert code == 3
    assert "COULD NOT CHECK  buggy.bin: " in out
    assert "good.bin: llama" in out
    assert "Traceback" not in out + err


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), RecursionError(), MemoryError()])
def test_main_on_a_bug_outside_the_check_returns_3_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("gqacheck.report.text.document", raising(error))
    code, out, err = run("good.bin")
    assert (code, out) == (3, "")
    assert err.startswith("gqacheck: ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("samples")
def test_main_on_a_bug_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gqacheck.report.text.document", raising(ZeroDivisionError("a bug")))
    run("good.bin")
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("GQACHECK_TRACEBACK", "1")
    run("good.bin")
    assert "Traceback" in capsys.readouterr().err


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(("name", "code"), [("good.bin", 0), ("bad.bin", 1), ("gone.bin", 3)])
def test_main_on_a_reader_that_left_keeps_the_verdicts_code(name: str, code: int) -> None:
    err = io.StringIO()
    assert main([name], Broken(BrokenPipeError()), err) == code
    assert err.getvalue() == ""


@pytest.mark.usefixtures("samples")
def test_main_on_a_full_disk_returns_3() -> None:
    err = io.StringIO()
    assert main(["good.bin"], Broken(OSError(28, "No space left on device")), err) == 3
    assert "standard output could not be written: No space left on device" in err.getvalue()


@pytest.mark.usefixtures("samples")
def test_main_without_standard_streams_still_returns_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["bad.bin"]) == 1
    assert main(["--nope"]) == 2


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_main_on_a_terminal_of_any_encoding_writes_what_it_can_show(encoding: str) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n")
    assert main(["bad.bin"], out, io.StringIO()) == 1
    text = raw.getvalue().decode(encoding)
    assert ("llama - torch zip" if encoding == "ascii" else "llama · torch zip") in text


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    ("argv", "variables", "terminal", "coloured"),
    [
        ([], {}, True, True),
        ([], {}, False, False),
        ([], {"NO_COLOR": "1"}, True, False),
        ([], {"NO_COLOR": ""}, True, True),
        ([], {"TERM": "dumb"}, True, False),
        (["--color", "never"], {}, True, False),
        (["--color", "always"], {"NO_COLOR": "1"}, False, True),
    ],
)
def test_main_colours_only_where_it_may(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], variables: dict[str, str], terminal: bool, coloured: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _, out, _ = run("bad.bin", *argv, stdout=Terminal() if terminal else None)
    assert ("\x1b[" in out) == coloured


@pytest.mark.usefixtures("samples")
def test_main_on_output_writes_each_format_into_its_file_and_the_report_to_stdout(tmp_path: Path) -> None:
    code, out, err = run("bad.bin", "--output", "json=o.json", "--output", "text=o.txt")
    assert (code, err) == (1, "")
    assert out == render_text(report(broken(path="bad.bin")))
    assert json.loads((tmp_path / "o.json").read_text())["exit_code"] == 1
    assert out in (tmp_path / "o.txt").read_text()
    assert sorted(os.listdir(tmp_path)) == ["o.json", "o.txt"]


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize("form", ["json", "text"])
def test_main_on_output_replaces_an_older_report_and_says_so(tmp_path: Path, form: str) -> None:
    assert run("bad.bin", "--output", f"{form}=o")[2] == ""
    code, _, err = run("good.bin", "--output", f"{form}=o")
    assert code == 0
    assert err == f"gqacheck: replaced the older report {tmp_path / 'o'}\n"
    assert "GQA104" not in (tmp_path / "o").read_text()


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("json=weights.bin", "exists and is not a report of gqacheck"),
        ("json=a-folder", "is a folder"),
        ("json=nowhere/o.json", "there is no folder"),
        ("json=good.bin", "is what is being checked"),
        ("json=./good.bin", "is what is being checked"),
        ("json=link", "exists and is not a report of gqacheck"),
    ],
)
def test_main_on_output_refuses_what_it_would_destroy_before_it_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, says: str
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04 weights")
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "link").symlink_to("weights.bin")
    monkeypatch.setattr(PIPELINE, "check_path", raising(AssertionError("it was checked")))
    code, out, err = run("good.bin", "--output", output)
    assert (code, out) == (2, "")
    assert says in err
    assert (tmp_path / "weights.bin").read_bytes() == b"PK\x03\x04 weights"


@pytest.mark.usefixtures("samples")
def test_main_on_output_named_twice_refuses() -> None:
    assert "named twice" in run("good.bin", "--output", "json=o", "--output", "text=./o")[2]


@pytest.mark.usefixtures("samples")
def test_main_on_output_to_a_pipe_writes_through_and_leaves_it_a_pipe(tmp_path: Path) -> None:
    """Never tried on a real device: a fault here would rename a file over it, and as root that succeeds."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert run("bad.bin", "--quiet", "--output", "text=pipe")[0] == 1
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert b"GQA104" in os.read(reader, 1 << 16)
    finally:
        os.close(reader)


def test_write_report_onto_what_became_a_pipe_meanwhile_refuses(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GqacheckError, match="is not a plain file any more"):
        write_report(report(healthy()), Output("json", str(tmp_path / "pipe")))
    assert os.listdir(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.usefixtures("samples")
def test_main_on_output_into_a_place_that_cannot_be_written_returns_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.replace", raising(OSError(28, "No space left on device")))
    code, out, err = run("good.bin", "--output", "json=o.json")
    assert code == 3
    assert "o.json could not be written: No space left on device" in err
    assert "llama" in out
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("samples")
def test_main_with_a_settings_file_uses_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def check_path(path: str, options: Any) -> CheckpointReport:
        seen.append(options)
        return healthy(path=path)

    monkeypatch.setattr(PIPELINE, "check_path", check_path)
    (tmp_path / "gqacheck.toml").write_text('fail-on = "warning"\nhead-dim = 64\nignore = ["GQA011"]\n')
    _, out, _ = run("good.bin", "--head-dim", "128")
    assert (seen[0].fail_on, seen[0].head_dim, seen[0].ignore) == ("warning", 128, ("GQA011",))
    assert f"settings were read from {tmp_path / 'gqacheck.toml'}" in out


def test_main_on_a_broken_settings_file_returns_2(tmp_path: Path) -> None:
    (tmp_path / "gqacheck.toml").write_text("fail_on = 1\n")
    code, _, err = run("good.bin")
    assert code == 2
    assert "did you mean fail-on?" in err


def test_explain_shows_the_docstring_with_its_headings() -> None:
    for name in ("GQA703", "gqa703", "ppl-broken"):
        code, out, _ = run("explain", name)
        assert code == 0
        for part in ("GQA703 ppl-broken", "What it checks", "Why it matters", "Fix", "Known misses", "Source"):
            assert part in out


@pytest.mark.parametrize(
    ("name", "hint"), [("GQA7O3", "GQA70"), ("ppl-broke", "ppl-broken"), ("GQA7", "GQA701, GQA702")]
)
def test_explain_on_a_name_that_is_no_rule_returns_2_with_a_suggestion(name: str, hint: str) -> None:
    code, _, err = run("explain", name)
    assert code == 2
    assert hint in err


def test_explain_reflowed_says_the_same_words_in_whole_paragraphs() -> None:
    straight, flowing = plain(explain("GQA703")), plain(explain("GQA703", reflow=True))
    assert straight.split() == flowing.split()
    assert len(flowing.splitlines()) < len(straight.splitlines())
    assert "\nWhat it checks\n" in flowing


def test_rules_lists_every_rule_as_table_and_as_json() -> None:
    from gqacheck.rules import RULES

    table, listed = run("rules")[1], json.loads(run("rules", "--format", "json")[1])
    assert [rule["code"] for rule in listed] == [rule.code for rule in RULES]
    for rule in RULES:
        assert f"{rule.code}  {rule.slug} " in table
    assert set(listed[0]) == {"code", "slug", "severity", "claim", "summary", "doc"}
    assert plain(rules_blocks()) == table
    assert json.loads(rules_json()) == listed


def test_demo_writes_and_checks_and_returns_0(tmp_path: Path) -> None:
    code, out, _ = run("demo", str(tmp_path / "d"))
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("exit code")] == [
        f"exit code {n}" for n in (0, 1, 1, 0)
    ]
    assert "20 of 24 query heads read a KV head they were not trained with" in out
    again, _, err = run("demo", str(tmp_path / "d"))
    assert again == 2
    assert "exists already" in err


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command as a user runs it."""
    return subprocess.run([*COMMAND, *argv], capture_output=True, timeout=60, check=False, **options)


def test_process_on_a_file_returns_its_code_and_prints_utf8(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_module(tmp_path / "m.bin")
    done = process(str(path), env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done
    assert "llama · torch zip" in done.stdout.decode()
    assert done.stderr == b""


def test_process_on_an_ascii_terminal_does_not_fail(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_module(tmp_path / "模型.bin")
    done = process(str(path), str(path), env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0, done
    assert done.stdout.isascii()


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def buffering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process writes at once, or when it leaves: both are common, and fail at different places."""
    monkeypatch.setenv("PYTHONUNBUFFERED", request.param)


@pytest.mark.usefixtures("buffering")
@pytest.mark.parametrize("command", [COMMAND, [sys.executable, "-m", "pruners"]], ids=["gqacheck", "gqaprune"])
def test_process_into_a_closed_pipe_says_nothing(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*command, "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.usefixtures("buffering")
def test_process_whose_reader_went_away_keeps_its_code_and_says_nothing(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_module(tmp_path / "m.bin")
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*COMMAND, str(path)], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_process_with_closed_streams_returns_its_code(tmp_path: Path) -> None:
    path = sketch_llama(n_layers=2).write_module(tmp_path / "m.bin")
    line = f"{sys.executable} -m gqacheck {path} >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], timeout=60, check=False).returncode == 0


@pytest.mark.usefixtures("buffering")
def test_process_into_a_full_disk_returns_3(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    path = sketch_llama(n_layers=2).write_module(tmp_path / "m.bin")
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, str(path)], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 3
    assert b"No space left" in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_process_when_interrupted_returns_130_without_a_traceback(tmp_path: Path) -> None:
    script = (
        "import gqacheck.pipeline, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell starts with &
        "def wait(path, options):\n print('ready', file=sys.stderr, flush=True)\n time.sleep(30)\n"
        "gqacheck.pipeline.check_path = wait\n"
        "from gqacheck.__main__ import run\nsys.argv = ['gqacheck', 'x.bin']\nrun()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stderr is not None
    assert child.stderr.readline() == b"ready\n"
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"Traceback" not in err
    assert b"interrupted" in err
