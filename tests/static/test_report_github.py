"""Workflow commands: escaped, at most ten of a kind, and not one that a checkpoint wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_everything import EVIL, everything, hostile, missing_facts, required, states, whole_report
from report_samples import broken, finding, healthy, unreadable

from gqacheck.report.github import LONGEST_MESSAGE, render_github
from gqacheck.result import CheckpointReport, Verdict
from gqacheck.rules.rule import Severity


@pytest.fixture(autouse=True, scope="module")
def no_workspace() -> Iterator[None]:
    """The repository's root is the folder that the tests run in, also on GitHub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GITHUB_WORKSPACE", raising=False)
        yield


def commands(text: str) -> list[tuple[str, dict[str, str], str]]:
    """What GitHub's runner reads in a log: the commands of its two syntaxes, with properties and data unescaped."""
    found = []
    for line in re.split(r"\r\n|\r|\n", text):
        assert "##[" not in line
        bare = line.lstrip()
        if bare.startswith("::"):
            match = re.fullmatch(r"::([\w-]+)(?: ([^:]*))?::(.*)", bare)
            assert match, line
            given_ = dict(part.split("=", 1) for part in (match[2] or "").split(",") if part)
            found.append((match[1], {key: unescaped(value) for key, value in given_.items()}, unescaped(match[3])))
    return found


def unescaped(text: str) -> str:
    """As the runner does it."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def made(*checkpoints: CheckpointReport) -> list[tuple[str, dict[str, str], str]]:
    return commands(render_github(whole_report(*checkpoints)))


def test_github_annotates_the_verdict_and_every_finding() -> None:
    found = made(everything())
    assert [name for name, *_ in found] == ["error", "error", "error", "warning", "notice", "group", "endgroup"]
    name, properties, message = found[1]
    assert (name, properties) == ("error", {"file": "ckpt.bin", "title": "GQA601 head-regrouped"})
    assert message.splitlines()[0].startswith("layers 4-28: query head 4 came from")
    assert "fix: gqacheck repair ckpt.bin --base parent -o fixed/" in message


def test_github_has_an_error_exactly_where_the_checkpoint_did_not_pass() -> None:
    for report, passed in states():
        assert any(name == "error" for name, *_ in made(report)) != passed, report


def test_github_of_what_could_not_be_checked_says_so_in_the_title() -> None:
    assert made(unreadable())[0][1]["title"] == "COULD NOT CHECK gone.bin"
    assert made(required())[0][1]["title"] == "COULD NOT CHECK ckpt.bin"


def test_github_of_known_findings_is_a_notice() -> None:
    known = finding()
    found = made(broken(verdict=Verdict.PASS, exit_code=0, findings=(known,), known=(known.fingerprint,)))
    assert [name for name, *_ in found[:2]] == ["notice", "notice"]
    assert found[1][1]["title"] == "known: GQA104 q-kv-indivisible"


def test_github_message_comes_back_as_it_was() -> None:
    text = "100 % of a%0Ab, c%25: d"
    found = made(broken(path="a", findings=(finding(message=text, slug=text),)))
    assert found[1][2].startswith(f"layer 4: {text}\n")
    assert found[1][1]["title"] == f"GQA104 {text}"


def test_github_shows_ten_of_a_kind_and_counts_the_rest() -> None:
    findings = tuple(finding(message=f"m{n}", layers=(n,)) for n in range(25))
    warnings = tuple(finding("GQA013", Severity.WARNING, message=f"w{n}") for n in range(10))
    found = made(broken(findings=(*findings, *warnings)))
    errors = [one for one in found if one[0] == "error"]
    assert len(errors) == 10
    assert errors[-1][1]["title"] == "gqacheck: and 17 more"
    assert "GQA104 q-kv-indivisible: 17" in errors[-1][2]
    assert len([one for one in found if one[0] == "warning"]) == 10


def test_github_names_a_file_only_inside_the_repository() -> None:
    for path, shown in (
        ("models/a.bin", "models/a.bin"),
        ("/tmp/a.bin", None),
        ("../a.bin", None),
        ("https://x/a.bin", None),
        ("a\nb.bin", None),
        ("C:\\a.bin", None),
        ("a,b%.bin", "a,b%.bin"),
        ("a##[b.bin", None),
        ("..a.bin", "..a.bin"),
        ("models/../a.bin", "a.bin"),
    ):
        assert made(broken(path=path))[0][1].get("file") == shown, path


def test_github_names_a_file_from_the_repository_and_not_from_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repo" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "repo")
    monkeypatch.chdir(tmp_path / "repo" / "sub")
    for root in ("repo", "link"):
        monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / root))
        for path, shown in (
            ("a.bin", "sub/a.bin"),
            ("../a.bin", "a.bin"),
            ("../../a.bin", None),
            (str(tmp_path / root / "a.bin"), "a.bin"),
            ("/elsewhere/a.bin", None),
        ):
            assert made(broken(path=path))[0][1].get("file") == shown, path
    monkeypatch.setenv("GITHUB_WORKSPACE", "")
    assert made(broken(path="a.bin"))[0][1].get("file") == "a.bin"


def test_github_tells_every_fact() -> None:
    assert missing_facts(unescaped(render_github(whole_report(everything())))) == []


def test_github_of_hostile_names_has_no_command_of_theirs() -> None:
    for text in (EVIL, "::error::pwned", "  ::add-mask::x", "##[error]x", "\r\n::warning::x", "\u2028::error::x"):
        for several in ((hostile(text),), (hostile(text), replace(hostile(text), findings=()))):
            found = made(*several)
            assert {name for name, *_ in found} <= {"error", "warning", "notice", "group", "endgroup"}
            assert all(set(properties) <= {"title", "file"} for _, properties, _ in found)
            assert [name for name, *_ in found].count("endgroup") == 1
            assert found[-1][0] == "endgroup"
            assert not any(message.startswith("pwned") for *_, message in found)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["::", "error", "##[", "\n", "\r", "%0A", "%", ",", " ", "x", "endgroup", "]"]), max_size=12
    )
)
@example(["::", "endgroup", "::"])
def test_github_of_any_name_keeps_its_commands(parts: list[str]) -> None:
    text = "".join(parts)
    report = broken(path=text, findings=(finding(slug=text, message=text, tensors=(text,)),), notes=(text,))
    expected = ["error", "error", "notice", "notice", "group", "endgroup"]
    assert [name for name, *_ in made(report, healthy())] == expected


def test_github_is_bounded() -> None:
    found = made(broken(findings=(finding(message="m" * 5000, cause="c" * 5000, fix="f" * 5000),)))
    lengths = [len(message) for *_, message in found]
    assert max(lengths) == LONGEST_MESSAGE == 4000
    assert found[1][2].endswith("…")
    assert len(render_github(whole_report(hostile(EVIL * 50_000)))) < 200_000
