"""What README and docs say is what the code prints today."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import docs.generate

    yield docs.generate
    sys.modules.pop("docs.generate")


def test_generated_docs_have_not_drifted(generate):
    assert [path.name for path in generate.drift()] == []


def test_drift_is_seen_when_a_word_of_the_readme_changes(generate, monkeypatch, tmp_path):
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(
        readme.read_text(encoding="utf-8").replace("q-kv-indivisible", "q-kv-divisible"), encoding="utf-8"
    )
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert "README.md" in [path.name for path in generate.drift()]
    assert "README.zh-CN.md" not in [path.name for path in generate.drift()]


def test_both_readmes_show_the_same_generated_parts():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    parts = [line for line in english.splitlines() if line.startswith("<!-- ")]
    assert parts
    assert parts == [line for line in chinese.splitlines() if line.startswith("<!-- ")]
    assert english.count("\n## ") == chinese.count("\n## ")
