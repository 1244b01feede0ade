"""Makes each test of a rule one line: ``fires(sketch, "GQA104")``, ``silent(sketch, "GQA104")``.

A sketch is written to a real file, read back by the real reader, measured, and handed to the rule through the real
runner; so a test says what a user would see, and breaks when any stage does.

    fires(cut, "GQA104", layers=[1], says=["7 query heads", "3 KV heads"])        # a whole-module pickle, by default
    fires(cut, "GQA403", container="folder", severity="error")
    silent(cut, "GQA403", container="module")                                      # ran, and found nothing
    skips(quantised, "GQA104", needs="dense-weights")                              # did not run, and says why

``FIRES`` and ``NEARLY`` of a test module map a code to cases; ``tests/static/rules`` must hold both for every rule::

    FIRES: Cases = {"GQA104": [("31 over 7", lambda: Case(llama_with(q=31, kv=7), says=["remainder 3"]))]}
    NEARLY: Cases = {"GQA104": [("28 over 7", lambda: Case(llama_with(q=28, kv=7)))]}

    @pytest.mark.parametrize(("code", "make"), cases(FIRES))
    def test_rule_on_its_fault_fires(code: str, make: Make) -> None:
        make().fires(code)

    @pytest.mark.parametrize(("code", "make"), cases(NEARLY))
    def test_rule_on_what_is_nearly_its_fault_is_silent(code: str, make: Make) -> None:
        make().silent(code)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from gqacheck.checkpoint import Checkpoint
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Expectations, Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Lineage
from gqacheck.rules.rule import Finding, Rule, Skipped
from gqacheck.rules.run import run_rules
from gqacheck.testing.sketch import Sketch, SketchModule
from gqacheck.testing.writers import tensor

FAMILIES = Path(__file__).parents[2] / "data" / "families"
OLD_PICKLES = Path(__file__).parents[3] / "fixtures" / "old_pickles"

Source: TypeAlias = "Sketch | Checkpoint | Subject | str | Path | Callable[[Path], Path]"
"""A sketch to be written, a path already written, a function that writes into the folder it is given and returns the
path, a checkpoint already read, or the subject itself."""


@dataclass(frozen=True, slots=True)
class Case:
    """One file and what a rule should say of it. ``container``: ``module``, ``state-dict`` or ``folder``.

    base: the parent. lineage: what its weights are said to show (see ``lineages``). config: written to a file and given
    as ``--config``. layers, says (parts of the message), tells (parts of the consequence), fixes (parts of the fix) and
    count are checked where they are given.
    """

    source: Source
    severity: str | None = None
    container: str = "module"
    base: Source | None = None
    lineage: Lineage | None = None
    expect: Expectations = field(default_factory=Expectations)
    family: str | None = None
    head_dim: int | None = None
    config: dict[str, Any] | None = None
    layers: Sequence[int] | None = None
    says: Sequence[str] = ()
    tells: Sequence[str] = ()
    fixes: Sequence[str] = ()
    count: int | None = None

    def run(self, code: str) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
        """What the rule makes of it."""
        return run_rules(self.subject(), (find_rule(code),))

    def subject(self) -> Subject:
        """The file, written, read back and measured."""
        base = make_subject(self.base, container=self.container) if self.base is not None else None
        return make_subject(
            self.source,
            container=self.container,
            base=base,
            lineage=self.lineage,
            expect=self.expect,
            family=self.family,
            head_dim=self.head_dim,
            config=self.config,
        )

    def fires(self, code: str) -> Finding:
        """Assert that the rule finds something, as described; the first finding."""
        findings, skipped = self.run(code)
        assert not skipped, f"{code} did not run: {skipped[0].reason}"
        assert findings, f"{code} found nothing"
        if self.count is not None:
            assert len(findings) == self.count, [finding.message for finding in findings]
        for finding in findings:
            check_wording(finding)
        first = findings[0]
        if self.severity is not None:
            assert first.severity == self.severity, first
        if self.layers is not None:
            assert first.layers == tuple(self.layers), first
        for text, wanted in (
            (first.message, self.says),
            (first.consequence, self.tells),
            (first.fix, self.fixes),
        ):
            for part in wanted:
                assert part in text, f"{part!r} is not in {text!r}"
        return first

    def silent(self, code: str) -> None:
        """Assert that the rule ran and found nothing."""
        findings, skipped = self.run(code)
        assert not skipped, f"{code} did not run: {skipped[0].reason}"
        assert not findings, [finding.message for finding in findings]

    def skips(self, code: str, needs: str) -> Skipped:
        """Assert that the rule did not run, for want of ``needs``."""
        findings, skipped = self.run(code)
        assert not findings, [finding.message for finding in findings]
        assert skipped, f"{code} ran"
        assert skipped[0].needs == needs, skipped[0]
        assert skipped[0].reason
        return skipped[0]


Make: TypeAlias = Callable[[], Case]
Cases: TypeAlias = "dict[str, list[tuple[str, Make]]]"


def cases(registry: Cases) -> list[Any]:
    """The parameters ``(code, make)`` of every case, for ``pytest.mark.parametrize``."""
    return [pytest.param(code, make, id=f"{code}-{name}") for code, made in registry.items() for name, make in made]


def fires(source: Source, code: str, **options: Any) -> Finding:
    """Assert that rule ``code`` finds something in ``source``; the options are the fields of ``Case``."""
    return Case(source, **options).fires(code)


def silent(source: Source, code: str, **options: Any) -> None:
    """Assert that rule ``code`` runs on ``source`` and finds nothing."""
    Case(source, **options).silent(code)


def skips(source: Source, code: str, *, needs: str, **options: Any) -> Skipped:
    """Assert that rule ``code`` does not run on ``source`` for want of ``needs``."""
    return Case(source, **options).skips(code, needs)


def findings(source: Source, codes: Iterable[str] = (), **options: Any) -> tuple[Finding, ...]:
    """All findings of the rules ``codes`` (of all rules without them)."""
    rules = [find_rule(code) for code in codes] or all_rules()
    return run_rules(Case(source, **options).subject(), rules)[0]


def codes(source: Source, **options: Any) -> set[str]:
    """The codes of everything that is found in ``source``."""
    return {finding.code for finding in findings(source, **options)}


def all_rules() -> Sequence[Rule]:
    """Every rule there is."""
    from gqacheck.rules import RULES

    return RULES


def find_rule(code: str) -> Rule:
    """The rule called ``code``."""
    return next(rule for rule in all_rules() if rule.code == code)


def make_subject(
    source: Source,
    *,
    container: str = "module",
    base: Subject | None = None,
    lineage: Lineage | None = None,
    expect: Expectations | None = None,
    family: str | None = None,
    head_dim: int | None = None,
    config: dict[str, Any] | None = None,
) -> Subject:
    """``source`` as every rule is handed it; a sketch goes to a file and comes back through the real reader."""
    if isinstance(source, Subject):
        return source
    checkpoint = source if isinstance(source, Checkpoint) else _read(source, container, config)
    geometry = measure(checkpoint, family=family, head_dim=head_dim)
    return Subject(checkpoint, geometry, base=base, expect=expect or Expectations(), lineage=lineage)


def _read(
    source: Sketch | str | Path | Callable[[Path], Path], container: str, config: dict[str, Any] | None
) -> Checkpoint:
    with tempfile.TemporaryDirectory(prefix="gqacheck-") as folder:
        config_path = None
        if config is not None:
            config_path = Path(folder) / "given.json"
            config_path.write_text(json.dumps(config), encoding="utf-8")
        if isinstance(source, Sketch):
            path: str | Path = write(source, Path(folder) / "made", container)
        elif callable(source):
            path = source(Path(folder))
        else:
            path = source
        return open_checkpoint(path, config=config_path)


def write(sketch: Sketch, folder: Path, container: str) -> Path:
    """The sketch as a file (or folder) of that container, alone in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if container == "module":
        return sketch.write_module(folder / "pytorch_model.bin")
    if container == "state-dict":
        return sketch.write_state_dict(folder / "pytorch_model.bin")
    assert container == "folder", container
    return sketch.write_folder(folder / "model")


def golden(name: str, *, live: bool = False) -> Sketch:
    """A healthy tiny model of one family as transformers wrote it to disk, or as its modules hold it (``live``)."""
    record = json.loads((FAMILIES / f"{name}.json").read_text(encoding="utf-8"))
    sketch = Sketch({}, {}, record["config"], config_class=record["config_class"])
    for tensor_name, (dtype, shape, *kind) in record["live" if live else "disk"].items():
        sketch.tensors[tensor_name] = tensor(shape, dtype, parameter="buffer" not in kind)
        if "buffer" in kind:
            sketch.buffers.add(tensor_name)
    for shared in record["shared"] if live else ():
        for other in shared[1:]:
            sketch.tensors[other] = sketch.tensors[shared[0]]
    if live:
        for path, (class_name, attributes) in record["modules"].items():
            sketch.modules[path] = SketchModule(class_name, dict(attributes))
    return sketch


def golden_names() -> list[str]:
    """The families of which a golden exists."""
    return sorted(path.stem for path in FAMILIES.glob("*.json"))


def check_wording(finding: Finding) -> None:
    """Every finding reads as the house wants it: one lower-case sentence, and something to do about it."""
    for text in (finding.message, finding.consequence, finding.fix):
        assert "\n" not in text, text
        assert not text.endswith("."), text
    message = finding.message
    assert message, finding
    first_word = message.split()[0]
    assert first_word[0].islower() or not first_word[0].isalpha() or not first_word.istitle(), message
    assert not message.startswith("layer "), message
    assert finding.fix or finding.severity == "note", f"{finding.code} does not say what to do: {message}"
