"""The weights of every family's tiny model, cut and regrouped alive: fused, stacked and per-group layouts included."""

from __future__ import annotations

import pytest
from planned_cuts import LayerPlan, attention_of, cut_by, layers_of, parent_of, random_plan
from tiny_models import CASES, CASES_BEYOND
from tiny_surgery import GROUP, KV

from gqacheck import check_model
from gqacheck.result import CheckpointReport

BY_OTHER_NAMES = {"phi", "granitemoe", "llama4"}  # their blocks are called something that planned_cuts does not cut
NAMES = sorted({*CASES, *CASES_BEYOND} - BY_OTHER_NAMES)


def pairing(report: CheckpointReport) -> tuple[str, set[str]]:
    claim = next(claim for claim in report.claims if claim.name == "pairing")
    return claim.state.value, {f.code for f in report.findings if f.code.startswith("GQA6") and f.severity != "note"}


@pytest.mark.parametrize("name", NAMES)
def test_lineage_of_a_live_paired_cut_passes(name: str) -> None:
    parent = parent_of(name).float()
    for seed in (1, 2):
        report = check_model(cut_by(parent, random_plan(parent, seed)), base=parent)
        assert pairing(report) == ("pass", set()), report.claims


@pytest.mark.parametrize("name", NAMES)
def test_lineage_of_a_live_regrouped_layer_names_every_query_head(name: str) -> None:
    parent = parent_of(name).float()
    full = [index for index, layer in enumerate(layers_of(parent)) if attention_of(layer) is not None]
    moved = LayerPlan([(head + GROUP) % (KV * GROUP) for head in range(KV * GROUP)], list(range(KV)))
    plan = [moved if index == full[-1] else LayerPlan() for index in range(len(layers_of(parent)))]
    report = check_model(cut_by(parent, plan), base=parent)
    assert pairing(report) == ("fail", {"GQA601"})
    assert report.lineage is not None
    assert len(report.lineage.layers[full[-1]].misread()) == KV * GROUP
