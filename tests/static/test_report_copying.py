"""The table of which layers copy, for ``--verbose``: what is measured, in words, and the base's figures beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_everything import consistency, everything, ran, whole_report

from gqacheck.geometry.outcomes import Induction
from gqacheck.report.document import plain
from gqacheck.report.text import document

OURS = Induction(5.6, 1.0, (0.01, 0.5), (-0.06, 4.6))
BASE = Induction(5.6, 0.1, (0.02, 0.75), (-0.05, 5.5))


def shown(ours: Induction | None, base: Induction | None = None, *, verbose: bool = True, quiet: bool = False) -> str:
    found = replace(consistency(), induction=ours, base_induction=base)
    report = whole_report(everything(runtime=ran(consistency=found)))
    return plain(document(report, verbose=verbose, quiet=quiet))


def test_table_has_a_row_per_layer_with_the_base_beside_it_and_says_what_it_shows() -> None:
    text = shown(OURS, BASE)
    assert "by layer saved: nats per token that seeing a random sequence again saves" in text
    assert "looks back: attention of the layer's best head to the token after the earlier copy" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["layer", "saved", "base", "looks", "back", "base"] in lines
    assert ["0", "-0.06", "-0.05", "0.010", "0.020"] in lines
    assert ["1", "4.60", "5.50", "0.500", "0.750"] in lines


@pytest.mark.parametrize("base", [None, Induction(5.6, 0.1, (0.2, 0.3, 0.4), (1.0, 2.0, 3.0))])
def test_base_with_other_layers_is_not_put_beside_them(base: Induction | None) -> None:
    assert ["1", "4.60", "0.500"] in [line.split() for line in shown(OURS, base).splitlines()]


def test_what_was_not_measured_has_no_column_and_nothing_at_all_is_said() -> None:
    assert ["1", "0.500"] in [line.split() for line in shown(replace(OURS, layer_drops=())).splitlines()]
    assert ["1", "4.60"] in [line.split() for line in shown(replace(OURS, layers=())).splitlines()]
    for ours in (None, Induction(5.6, 1.0)):
        assert "repeated random tokens were not measured by layer" in shown(ours)


def test_without_verbose_or_with_quiet_it_is_left_out() -> None:
    assert "by layer" not in shown(OURS, BASE, verbose=False)
    assert "by layer" not in shown(OURS, BASE, quiet=True)
    assert "by layer" not in plain(document(whole_report(everything(runtime=None)), verbose=True))
