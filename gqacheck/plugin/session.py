"""A pytest run that was asked for checkpoints: what is decided before it, handed to workers, collected and told."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from typing import Any

import pytest

from gqacheck.errors import GqacheckError
from gqacheck.plugin.items import GqacheckCollector, GqacheckItem
from gqacheck.plugin.plan import Plan, as_text, from_text, make_plans
from gqacheck.text import printable


def start(config: pytest.Config) -> None:
    """Decides what the run checks, and registers what does it. Raises pytest.UsageError for what makes no sense."""
    from gqacheck.plugin.asked import read_asked

    _refuse_what_workers_cannot_take(config)
    try:
        asked = read_asked(config)
        plans = make_plans(asked.wanted, str(config.rootpath))
    except GqacheckError as error:
        raise pytest.UsageError(f"gqacheck: {printable(error, 2000)}") from None
    if plans or asked.left_out:
        config.pluginmanager.register(GqacheckRun(plans, remark=asked.left_out), "gqacheck-run")


def start_worker(config: pytest.Config, words: tuple[str, str]) -> None:
    """The same in a worker of xdist, from what the first process has decided."""
    plans, folder = words
    config.pluginmanager.register(GqacheckRun(from_text(plans), folder), "gqacheck-run")


class GqacheckRun:
    """The hooks of such a run. folder: where the workers share reports; "" where there are none."""

    def __init__(self, plans: tuple[Plan, ...], folder: str = "", remark: str = "") -> None:
        self.plans = plans
        self.folder = folder
        self.remark = remark
        self.made_folder = ""
        self.stale: dict[str, None] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hands a worker of xdist what was decided."""
        if not self.made_folder:
            self.made_folder = tempfile.mkdtemp(prefix="gqacheck-")
        node.workerinput["gqacheck"] = (as_text(self.plans), self.made_folder)

    def pytest_unconfigure(self) -> None:
        """Clears the workers' folder away."""
        if self.made_folder:
            shutil.rmtree(self.made_folder, ignore_errors=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Adds the items, in front of -k, -m, --lf and xdist's sharing out."""
        if not self.plans:
            return
        parent = GqacheckCollector.from_parent(session, name="gqacheck", nodeid="gqacheck")
        made: list[pytest.Item] = []
        for plan in self.plans:
            for part in plan.parts:
                name = f"{plan.name}::{part.name}"
                rest = {"plan": plan, "part": part, "folder": self.folder}
                made.append(GqacheckItem.from_parent(parent, name=name, nodeid=f"gqacheck::{name}", **rest))
        report = pytest.CollectReport("gqacheck", "passed", None, list(made))
        session.config.hook.pytest_collectreport(report=report)
        items.extend(made)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, None]:
        """What is skipped is skipped at the checkpoint, not at a line of ours; stale entries travel with the report."""
        outcome = yield
        if not isinstance(item, GqacheckItem):
            return
        report = outcome.get_result()
        if report.skipped and isinstance(report.longrepr, tuple):
            report.longrepr = (item.place, 1, report.longrepr[2])
        if report.when == "call" and item.stale:
            report.gqacheck_stale = [printable(entry, 2000) for entry in item.stale]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gathers the stale entries of baselines, from workers too."""
        self.stale.update(dict.fromkeys(getattr(report, "gqacheck_stale", ())))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tells them, and why the checkpoints of the settings are not items: here, because -q leaves out headers."""
        if self.remark:
            terminalreporter.write_line(f"gqacheck: {printable(self.remark, 2000)}")
        for entry in self.stale:
            terminalreporter.write_line(f"gqacheck: {entry}")


def _refuse_what_workers_cannot_take(config: pytest.Config) -> None:
    """Raises pytest.UsageError for words that xdist cannot hand to a worker, before there is one."""
    if not getattr(config.option, "tx", None):
        return
    for word in (*sys.argv, *config.invocation_params.args):
        if not _is_unicode(os.fspath(word)):
            shown = printable(os.fspath(word), 400)
            raise pytest.UsageError(f"gqacheck: xdist takes no {shown}: put it into checkpoints of gqacheck.toml")


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
