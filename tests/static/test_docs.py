"""What README and docs say is what the code prints today."""

import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from gqacheck.arguments import parse

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs import console, generate, reference  # noqa: E402

PAGES = generate.pages_with_commands()
WRITTEN = [ROOT / "README.md", ROOT / "README.zh-CN.md", *generate.pages()]
PAGE = """\
```toml title="gqacheck.toml"
quiet = true
```
```console
$ gqacheck demo \\
>   made > /dev/null
what it said once
$ gqacheck made/parent
$ python -c 'import sys; print("no" + chr(13) + "yes"); sys.exit(4)'
$ python -c 'import sys; print("out"); print("err", file=sys.stderr)' 2> /dev/null | cat
$ ls made | head -n 1
```
"""


def ids(path):
    return path.relative_to(ROOT).as_posix()


def test_generated_docs_have_not_drifted():
    assert [path.name for path in generate.drift()] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_on_the_page_print_what_it_says(page):
    text = page.read_text(encoding="utf-8")
    if missing := [name for name in console.needs(text) if not find_spec(name)]:
        pytest.skip(f"its commands need {', '.join(missing)}")
    today = generate.command_drift(page)
    assert today is None, f"{page.name} has drifted (make docs writes it):\n{today}"


def test_pages_that_need_no_torch_are_run_everywhere():
    alone = {page.name for page in PAGES if set(console.needs(page.read_text("utf-8"))) <= {"pytest"}}
    assert alone >= {"index.md", "install.md", "pytest.md", "pre-commit.md", "settings.md", "reports.md"}


def test_drift_is_seen_when_a_word_of_the_readme_changes(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    for name in generate.READMES:
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(
        readme.read_text(encoding="utf-8").replace("q-kv-indivisible", "q-kv-divisible"), encoding="utf-8"
    )
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert "README.md" in [path.name for path in generate.drift()]
    assert "README.zh-CN.md" not in [path.name for path in generate.drift()]


def test_both_readmes_show_the_same_generated_parts():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in generate.READMES)
    parts = [line for line in english.splitlines() if line.startswith("<!-- ")]
    assert parts
    assert parts == [line for line in chinese.splitlines() if line.startswith("<!-- ")]
    assert english.count("\n## ") == chinese.count("\n## ")


@pytest.fixture(scope="module")
def shown():
    return console.replayed(PAGE)


def test_replayed_page_shows_todays_output_exit_codes_and_relative_paths(shown):
    assert "what it said once" not in shown
    assert "$ gqacheck demo \\\n>   made > /dev/null\n\n$ gqacheck made/parent\n" in shown
    assert "note: settings were read from gqacheck.toml\nmade/parent: PASS" in shown
    assert "\nyes\nexit code 4\n\n" in shown
    assert "2> /dev/null | cat\nout\n\n$ ls made | head -n 1\nhealthy\n```\n" in shown


@pytest.mark.parametrize("name", ["CI", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "PYTEST_ADDOPTS", "PYTHONWARNINGS"])
def test_a_page_sees_nothing_of_the_environment_it_is_replayed_in(monkeypatch, name):
    monkeypatch.setenv(name, "77")
    page = f'```console\n$ echo "[${name}]"\n```\n'
    assert "77" not in console.replayed(page)


def test_changed_output_of_a_command_is_drift(tmp_path, shown):
    page = tmp_path / "page.md"
    page.write_text(shown.replace("healthy\n", "broken\n"), encoding="utf-8")
    assert generate.command_drift(page) == shown


def test_times_never_count_and_last_digits_only_where_no_model_is_run():
    assert generate.same("read in 0.12 s", "read in 3.4 s")
    assert not generate.same("perplexity 66.82", "perplexity 66.83")
    model = "<!-- console: needs torch -->\nperplexity 66.82 of 24 heads, apart by 3.8e-06"
    assert generate.same(model, model.replace("66.82", "66.90").replace("3.8e-06", "1.2e-06"))
    assert not generate.same(model, model.replace("66.82", "71.02"))
    assert not generate.same(model, model.replace("24 heads", "25 heads"))
    assert not generate.same(model, model.replace("3.8e-06", "3.8e-02"))


def test_output_that_would_be_taken_for_a_command_is_refused():
    with pytest.raises(RuntimeError, match="looks like a command"):
        console.replayed("```console\n$ echo '$ rm'\n```\n")


def test_reference_names_all_that_the_packages_export():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    import gqacheck
    import gqacheck.testing

    exported = {*gqacheck.__all__, *gqacheck.testing.__all__} - {"__version__"}
    assert {name for name in exported if f"\n### {name}\n" not in text} == set()


def test_docstring_becomes_lists_and_fenced_examples():
    doc = "What it is::\n\n    >>> one(``2``)\n\na, b: numbers\nc: a text\n    that goes on\n\nRaises:\n    Error: bad"
    assert reference.markdown(doc) == (
        "What it is:\n\n```pycon\n>>> one(`2`)\n```\n\n- `a`, `b`: numbers\n- `c`: a text\n  that goes on\n\n"
        "Raises:\n\n- `Error`: bad"
    )


def test_settings_page_has_every_key_that_a_settings_file_may_hold():
    from gqacheck.flags import FLAGS

    text = (ROOT / "docs" / "how-to" / "settings.md").read_text(encoding="utf-8")
    missing = [flag.name for flag in FLAGS.values() if f"| `{flag.name[2:]}` |" not in text and flag.setting]
    assert missing == []
    assert not any(f"| `{flag.name[2:]}` |" in text for flag in FLAGS.values() if not flag.setting)


def shell_lines():
    """(page, command) of every line of a block that is shown and not run."""
    for path in WRITTEN:
        for match in console.FENCE.finditer(path.read_text(encoding="utf-8")):
            if match["info"].strip() == "sh":
                yield from ((path.name, line) for line in match["body"].splitlines())


def test_commands_that_are_only_shown_are_of_the_command_line_and_the_extras_of_today():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    seen = []
    for page, line in shell_lines():
        words = shlex.split(line, comments=True)
        seen += words[:1]
        if words[:1] == ["gqacheck"]:
            parse(words[1:])
        elif words[:1] == ["gqaprune"]:
            from pruners.flags import parse as parse_pruning

            parse_pruning(words[1:])
        elif words[:2] == ["pip", "install"]:
            named = {name for word in words for group in re.findall(r"\[(.*)\]", word) for name in group.split(",")}
            assert named <= set(extras), (page, line)
        elif words[:1] == ["make"]:
            assert words[1] in targets, (page, line)
    assert {"gqacheck", "gqaprune", "pip", "make"} <= set(seen)


def test_python_on_the_pages_compiles():
    blocks = [
        (path.name, match["body"])
        for path in WRITTEN
        for match in console.FENCE.finditer(path.read_text(encoding="utf-8"))
        if match["info"].split()[:1] == ["python"] and path.name != "api.md"
    ]
    assert len(blocks) > 8
    for name, body in blocks:
        compile(body, name, "exec")
