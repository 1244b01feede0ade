"""Every checkpoint of the zoo, and every old pickle, gets exactly the findings that the rule table promises for it."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gqacheck
from fixtures.zoo import ZOO, Case, build_case

OLD_PICKLES = Path(__file__).parents[1] / "fixtures" / "old_pickles"
CLEAN: frozenset[str] = frozenset()
RESHAPE, MLP_SIZE = frozenset({"GQA205"}), frozenset({"GQA206"})
OLD = {
    # name: (errors, warnings); a stale attention.hidden_size is an error where the layout proves that it is used
    "llama-fp32-4.33.3": (CLEAN, CLEAN),
    "llama-pruned-half-legacy-4.33.3": (RESHAPE, MLP_SIZE),
    "mistral-pruned-half-4.36.2": (RESHAPE, MLP_SIZE),
    "llama-pruned-half-4.40.2": (RESHAPE, MLP_SIZE),
    "qwen2-pruned-fp32-4.40.2": (RESHAPE, MLP_SIZE),
    "llama-pruned-half-5.23.0": (CLEAN, MLP_SIZE),
    "qwen2-pruned-fp32-5.23.0": (CLEAN, MLP_SIZE),
}


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def found(path: Path, **options: Any) -> tuple[frozenset[str], frozenset[str], str]:
    """Return (codes at error level, codes at warning level, what was said) for one checkpoint."""
    report = gqacheck.check(path, **options)
    said = "\n".join(f"{finding.severity} {finding.code} {finding.message}" for finding in report.findings)
    by_severity = {
        severity: frozenset(finding.code for finding in report.findings if finding.severity == severity)
        for severity in ("error", "warning")
    }
    assert report.error is None, report.error
    return by_severity["error"], by_severity["warning"], said


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_zoo_case_gets_exactly_its_findings(case: Case, zoo_folder: Path) -> None:
    path = build_case(case, zoo_folder)
    errors, warnings, said = found(path, **case.options)
    assert (errors - case.also, warnings - case.also) == (case.errors, case.warnings), f"{case.summary}\n{said}"


@pytest.mark.parametrize("name", OLD)
def test_old_pickle_gets_exactly_its_findings(name: str) -> None:
    errors, warnings, said = found(OLD_PICKLES / f"{name}.bin")
    assert (errors, warnings) == OLD[name], said


def test_zoo_names_are_unique_and_summaries_keep_their_promise() -> None:
    assert len({case.name for case in ZOO}) == len(ZOO)
    for case in ZOO:
        promised = case.summary.split(":")[0] in {"sound", "legal", "silent"}
        assert not (promised and case.errors), case.name
        assert not case.expected & case.also, case.name


def test_zoo_has_about_as_many_sound_cases_as_broken_ones() -> None:
    clean = sum(not case.errors for case in ZOO)
    assert 0.3 < clean / len(ZOO) < 0.7


def test_every_old_pickle_is_expected() -> None:
    assert {path.stem for path in OLD_PICKLES.glob("*.bin")} == set(OLD)
