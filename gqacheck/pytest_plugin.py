"""The pytest entry point: checkpoints as test items, two fixtures and a marker.

Registered by installing gqacheck; ``-p no:gqacheck`` leaves it out. It imports pytest, which a pytest run has anyway,
and nothing else: everything heavier is imported when something is asked for.

* ``pytest --gqacheck ckpt.bin``, or ``checkpoints = [...]`` in ``[tool.gqacheck]``: one item per group of rules and
  range of layers (``gqacheck::ckpt.bin::GQA1-attention[layers 00-07]``);
* ``gqacheck_report(path, **options)`` and ``gqacheck_model(path)`` as fixtures;
* ``@pytest.mark.gqacheck(path, **options)``: the test runs only when the checkpoint is sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--gqacheck", {"action": "append", "metavar": "CKPT", "help": "check this file or folder; repeatable"}),
    ("--gqacheck-base", {"metavar": "PARENT", "help": "the checkpoint before pruning: heads must read their KV head"}),
    (
        "--gqacheck-ppl",
        {
            "action": "append",
            "nargs": "?",
            "const": "smoke",
            "metavar": "CORPUS",
            "help": "run the model: perplexity on the built-in text or on CORPUS[@PROTOCOL]; repeatable",
        },
    ),
    ("--gqacheck-generate", {"action": "store_true", "help": "run the model: look at what it writes"}),
    ("--gqacheck-consistency", {"action": "store_true", "help": "run the model: cache, padding, attention code"}),
    ("--gqacheck-require", {"metavar": "NAMES", "help": "fail unless checked: shapes,pairing,ppl,..."}),
    ("--gqacheck-fail-on", {"metavar": "LEVEL", "help": "error (default) or warning"}),
    ("--gqacheck-baseline", {"metavar": "FILE", "help": "known findings, which pass"}),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options to ``pytest --help``, in a group of their own."""
    group = parser.getgroup("gqacheck", "checks of pruned GQA checkpoints")
    for name, settings in _OPTIONS:
        group.addoption(name, dest=name[2:].replace("-", "_"), **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line(
        "markers", "gqacheck(path, **options): run the test only when gqacheck finds the checkpoint sound"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the items of the checkpoints that were asked for, in front of -k, -m, --lf and xdist's sharing out."""
    if not _is_asked(config):
        return
    from gqacheck.plugin.collect import checkpoint_items

    made = list(checkpoint_items(session))
    config.hook.pytest_collectreport(report=pytest.CollectReport("gqacheck", "passed", None, list(made)))
    items.extend(made)


def _is_asked(config: pytest.Config) -> bool:
    """Whether a checkpoint is named on the command line, or a settings file of the project may name some."""
    if config.option.gqacheck:
        return True
    root = config.rootpath
    for path in (root / "gqacheck.toml", root / "pyproject.toml"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if b"checkpoints" in text and (path.name == "gqacheck.toml" or b"tool.gqacheck" in text):
            return True
    return False


@pytest.fixture(scope="session")
def gqacheck_report() -> Callable[..., Any]:
    """``gqacheck_report(path, **options)``: the report of ``gqacheck.check``; each one is made once per session."""
    from gqacheck.plugin.reports import report_of

    return report_of


@pytest.fixture(scope="session")
def gqacheck_model() -> Callable[..., Any]:
    """``gqacheck_model(path, **options)``: (model, tokenizer) of ``gqacheck.load_model``, loaded once per session.

    The tests of a session share the module: a test that changes it must work on a copy.
    """
    from gqacheck.plugin.reports import model_of

    return model_of


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks what ``@pytest.mark.gqacheck(path, **options)`` names before the marked test runs."""
    for marker in item.iter_markers("gqacheck"):
        from gqacheck.plugin.reports import require_sound

        require_sound(*marker.args, **marker.kwargs)
