"""Where a perplexity comes from, from files to verdict: trained fixtures, the zoo's cuts of them, and bad luck."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from tiny_surgery import cut_layers

from fixtures.zoo import ZOO, build_case
from fixtures.zoo.case import LLAMA, Case
from fixtures.zoo.containers import llm_pruner
from fixtures.zoo.cuts import groups, layers
from gqacheck.errors import UsageError
from gqacheck.formats import open_checkpoint
from gqacheck.geometry.facts import Subject
from gqacheck.geometry.measure import measure
from gqacheck.geometry.origins import Lineage
from gqacheck.lineage.trace import trace_lineage
from gqacheck.runtime import beside, rebuild
from gqacheck.runtime.beside import run_beside
from gqacheck.runtime.run import Request, run_child

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
HELDOUT = str(FIXTURES / "heldout.txt")
CASES = {case.name: case for case in ZOO}
LIMIT = 6


def subject_of(path):
    checkpoint = open_checkpoint(str(path))
    return Subject(checkpoint, measure(checkpoint))


def lineage_of(child, parent):
    return trace_lineage(child.checkpoint, child.geometry, parent.checkpoint, parent.geometry)


def ran(child, parent=None, *, corpora=(HELDOUT,), **options):
    """The child's own facts, and what it left behind."""
    request = Request(tuple(corpora), stop_early=False, **options)
    return run_child(child.checkpoint, child.geometry, request, beside=(parent or child).checkpoint)


def explained(child, parent, *, corpora=(HELDOUT,), lineage=None, pairing_broken=None, before=None, **options):
    """Counterfactuals, notes on them (or why nothing stands beside the base) and what the child's own run gave."""
    lineage = lineage or lineage_of(child, parent)
    facts, left = before or ran(child, parent, corpora=corpora, **options)
    broken = any(layer.misread() for layer in lineage.layers) if pairing_broken is None else pairing_broken
    request = Request(tuple(corpora), stop_early=False, **options)
    child = replace(child, lineage=lineage)
    after = run_beside(child, parent, facts, left, request, explain=True, pairing_broken=broken)
    assert after.notes[: len(facts.notes)] == facts.notes
    why = (after.base_problem,) if after.base_problem and not after.bases else ()
    return after.counterfactuals, (*after.notes[len(facts.notes) :], *why), facts


@pytest.fixture
def zoo_case(tmp_path):
    def make(case, **options):
        case = CASES[case] if isinstance(case, str) else case
        return explained(
            subject_of(build_case(case, tmp_path)), subject_of(FIXTURES / case.base), **{"limit": LIMIT, **options}
        )

    return make


@pytest.mark.parametrize(("case", "child"), [("llama-truncated-bin", 1500), ("qwen2-truncated-folder", 300)])
def test_truncated_child_is_explained_by_its_pairing(case, child, zoo_case):
    (found,), notes, facts = zoo_case(case)
    assert notes == ()
    assert (found.verdict, found.partial, found.note) == ("pairing", False, "")
    assert 45 < found.base < 65
    assert 1.1 * found.base < found.masked < 2 * found.base
    assert found.child > child
    assert (found.child, found.tokens, found.windows) == (
        pytest.approx(facts.perplexities[0].value),
        facts.perplexities[0].tokens,
        facts.perplexities[0].windows,
    )
    assert found.protocol == facts.perplexities[0].protocol


def test_misread_heads_are_pairing_even_where_their_rule_was_ignored(zoo_case):
    (found,), _, _ = zoo_case("qwen2-truncated-folder", pairing_broken=False)
    assert found.verdict == "pairing"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("llama-groups-bin", "fine"),
        ("llama-mlp-nonuniform-bin", "fine"),
        ("llama-hidden-bin", "fine"),
        ("qwen2-depth-folder", "fine"),
        ("llama-features-stale", "fine"),
        ("llama-16x8-folder", "over-pruned"),
        ("llama-16x4-sharded", "over-pruned"),
    ],
)
def test_correct_cut_costs_what_masking_its_parent_costs(case, said, zoo_case):
    (found,), notes, _ = zoo_case(case)
    assert notes == ()
    assert found.masked == pytest.approx(found.child, rel=1e-4)
    assert found.masked > 1.02 * found.base
    assert (found.verdict, found.partial, found.note) == (said, False, "")


def test_child_that_lost_its_biases_is_explained_by_neither_pruning_nor_pairing(zoo_case):
    (found,), _, _ = zoo_case("qwen2-bias-lost")
    assert found.verdict == "loader"
    assert found.child > 1.3 * found.masked


@pytest.mark.parametrize("case", ["llama-o-first-columns", "llama-v-first-heads"])
def test_child_whose_blocks_disagree_is_explained_by_its_pairing_when_a_rule_says_so(case, zoo_case):
    (found,), _, _ = zoo_case(case, pairing_broken=True)
    assert found.verdict == "pairing"
    assert found.child > 10 * found.masked


def test_identical_child_is_fine_and_its_parent_is_measured_once(zoo_case, monkeypatch):
    measured = []
    real = beside._measure
    monkeypatch.setattr(beside, "_measure", lambda *args: measured.append(1) or real(*args))
    (found,), _, _ = zoo_case("llama-base-folder")
    assert (found.verdict, found.base, found.masked) == ("fine", found.child, found.child)
    assert len(measured) == 1


def test_smoke_is_judged_where_the_parent_reads(zoo_case):
    (found,), _, _ = zoo_case("llama-truncated-bin", corpora=("smoke",))
    assert found.verdict == "pairing"
    assert "on english alone: on chinese, code the parent itself is worse than guessing" in found.note
    assert found.base < found.masked < found.child


def test_reordered_layers_are_never_called_a_loader_error(zoo_case):
    case = Case("reversed", "", LLAMA, layers((5, 1, 2, 3, 4, 0)), llm_pruner())
    found, (note,), facts = zoo_case(case)
    assert found == ()
    assert facts.perplexities[0].value > 200
    assert "no verdict, for the child's layers stand in another order than the parent's" in note
    assert " base, " in note


def shaken(model):
    """Cut by groups, then every weight changed: a stand-in for training on something else altogether."""
    groups((0, 2, 3, 4, 6, 7), range(1, 5))(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.7 * parameter.data.std() * noise


def test_child_whose_weights_were_changed_is_never_called_a_loader_error(zoo_case):
    found, (note,), _ = zoo_case(Case("shaken", "", LLAMA, shaken, llm_pruner()))
    assert found == ()
    assert "no verdict, for not every weight is the parent's bit by bit" in note


@pytest.fixture
def tiny_pair(tmp_path):
    """A tiny parent and its cut child, of random weights: nothing about them is better than guessing."""

    def make(name="llama", *, child_tokenizer=True, **changes):
        for who in ("parent", "child"):
            model = tiny_model(name, **changes.get(who, {}))
            if who == "child":
                cut_layers(model)
            tokenizer = tiny_tokenizer() if who == "parent" or child_tokenizer else None
            torch.save({"model": model, "tokenizer": tokenizer}, tmp_path / f"{who}.bin")
        return subject_of(tmp_path / "child.bin"), subject_of(tmp_path / "parent.bin")

    return make


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog and reads its own tracks. " * 14)
    return str(tmp_path / "text.txt")


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "qwen2_moe", "gpt_oss", "falcon", "olmo2", "gemma2"])
def test_parent_that_reads_nothing_proves_nothing(name, tiny_pair, text):
    child, parent = tiny_pair(name)
    (found,), notes, _ = explained(child, parent, corpora=(text,))
    assert notes == ()
    assert found.verdict == "base-broken"
    assert found.masked == pytest.approx(found.child, rel=1e-3)
    assert found.masked != pytest.approx(found.base, rel=1e-3)


def test_each_corpus_is_explained_by_itself(tiny_pair, text):
    child, parent = tiny_pair()
    found, _, _ = explained(child, parent, corpora=(text, f"{text}@windows-64"))
    assert found[0].windows < found[1].windows
    assert [one.protocol.split(":")[0] for one in found] == ["windows-512", "windows-64"]


def test_windows_are_the_childs_where_its_own_are_shorter(tiny_pair, text):
    child, parent = tiny_pair(child={"max_position_embeddings": 128})
    (found,), notes, _ = explained(child, parent, corpora=(text,))
    assert notes == ()
    assert found.protocol.startswith("windows-128:")


def test_windows_that_the_parent_cannot_read_are_said(tiny_pair, text):
    child, parent = tiny_pair(parent={"max_position_embeddings": 128})
    found, (note,), _ = explained(child, parent, corpora=(text,))
    assert found == ()
    assert note.endswith("it reads 128 positions, and this file was read in windows of 512: use windows-128")


def test_tokenizer_is_the_parents_where_the_child_has_none(tiny_pair, text):
    child, parent = tiny_pair(child_tokenizer=False)
    found, notes, facts = explained(child, parent, corpora=(text,))
    assert (len(found), notes) == (1, ())
    assert "no tokenizer is stored with this file: it was read with the base's" in facts.notes


def test_parent_without_a_config_is_said(tiny_pair, text, tmp_path):
    child, parent = tiny_pair()
    torch.save(tiny_model("llama").state_dict(), tmp_path / "state.bin")
    bare = subject_of(tmp_path / "state.bin")
    found, (note,), _ = explained(child, bare, corpora=(text,), lineage=lineage_of(child, parent))
    assert found == ()
    assert note.startswith("the base could not be run beside this file: it carries no config")


def test_forward_of_the_parent_that_raises_is_said(tiny_pair, text, monkeypatch):
    child, parent = tiny_pair()
    before = ran(child, corpora=(text,))
    lineage = lineage_of(child, parent)

    def fail(*args, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(beside, "_measure", fail)
    found, (note,), _ = explained(child, parent, corpora=(text,), before=before, lineage=lineage)
    assert found == ()
    assert "its forward pass raises RuntimeError: mat1 and mat2 shapes cannot be multiplied" in note


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "it needs more memory than this machine has"),
        (
            torch.OutOfMemoryError("no"),
            "there is not enough memory for it: lower --batch-size, or use --dtype bfloat16",
        ),
        (FileNotFoundError(2, "gone", "x.bin"), "x.bin: gone"),
        (RecursionError(), "its forward pass raises RecursionError"),
    ],
)
def test_parent_that_does_not_fit_or_vanishes_is_said(error, says, tiny_pair, text, monkeypatch):
    child, parent = tiny_pair()
    before = ran(child, corpora=(text,))

    def fail(*args, **options):
        raise error

    lineage = lineage_of(child, parent)
    monkeypatch.setattr(rebuild, "rebuild", fail)
    found, (note,), _ = explained(child, parent, corpora=(text,), before=before, lineage=lineage)
    assert found == ()
    assert note.startswith(f"the base could not be run beside this file: {says}")


def test_child_that_is_no_child_is_a_note_and_nothing_is_masked(tiny_pair, text, monkeypatch):
    child, parent = tiny_pair()
    before = ran(child, corpora=(text,))
    monkeypatch.setattr(beside, "_masked", None)
    unrelated = Lineage("unrelated", "next to nothing in it is the parent's")
    found, (note,), _ = explained(child, parent, corpora=(text,), before=before, lineage=unrelated)
    assert found == ()
    assert note.endswith("next to nothing in it is the parent's")


def test_child_that_did_not_run_has_nothing_to_explain(tiny_pair, text):
    child, parent = tiny_pair()
    facts, left = ran(child, corpora=(text,))
    left.plans.clear()
    before = replace(facts, perplexities=()), left
    assert explained(child, parent, corpora=(text,), before=before)[:2] == ((), ())


def test_option_that_makes_no_sense_raises(tiny_pair, text):
    child, parent = tiny_pair()
    before = ran(child, corpora=(text,))
    with pytest.raises(UsageError, match="device"):
        explained(child, parent, corpora=(text,), before=before, device="nonsense")


def test_parent_is_rebuilt_once_and_let_go(tiny_pair, text, monkeypatch):
    child, parent = tiny_pair()
    before = ran(child, corpora=(text,))
    made = []
    real = rebuild.rebuild

    def watched(*args, **options):
        result = real(*args, **options)
        made.append(weakref.ref(result.model))
        return result

    monkeypatch.setattr(rebuild, "rebuild", watched)
    found, _, _ = explained(child, parent, corpora=(text,), before=before)
    gc.collect()
    assert len(found) == 1
    assert [reference() for reference in made] == [None]


def test_progress_tells_the_parent_from_the_masked_parent(tiny_pair, text):
    said = []
    explained(*tiny_pair(), corpora=(text,), progress=lambda what, done, total: said.append((what, done, total)))
    labels = list(dict.fromkeys(what for what, _, _ in said))
    assert labels[-3:] == ["parent: weights", f"parent: {text}", f"masked parent: {text}"]
    assert all(0 < done <= total for _, done, total in said)


def test_explaining_twice_gives_the_same_digits(tiny_pair, text):
    child, parent = tiny_pair()
    before = torch.random.get_rng_state()
    first, second = (explained(child, parent, corpora=(text,))[0] for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.random.get_rng_state())
    assert math.isfinite(first[0].masked)
