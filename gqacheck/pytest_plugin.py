"""The pytest entry point: checkpoints as test items, two fixtures and a marker.

Registered by installing gqacheck; ``-p no:gqacheck`` leaves it out. It imports pytest, which a pytest run has anyway,
and nothing else: everything heavier is imported when something is asked for.

* ``pytest --gqacheck=ckpt.bin``, or ``checkpoints = [...]`` in ``[tool.gqacheck]``: one item per group of rules and
  range of layers (``gqacheck::ckpt.bin::GQA1-attention[layers 00-07]``);
* ``gqacheck_report(path, **options)`` and ``gqacheck_model(path)`` as fixtures;
* ``@pytest.mark.gqacheck(path, **options)``: the test runs only when the checkpoint is sound.

PYTEST_DONT_REWRITE: there is nothing to rewrite here, and whoever has imported it before pytest gets no warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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


def pytest_sessionstart(session: pytest.Session) -> None:
    """Decides what is checked before anything runs; a worker of xdist is told what the first process decided."""
    config = session.config
    words = getattr(config, "workerinput", {}).get("gqacheck")
    if words is not None:
        from gqacheck.plugin.session import start_worker

        start_worker(config, words)
    elif not hasattr(config, "workerinput") and (_has_options(config) or _has_settings(config)):
        from gqacheck.plugin.session import start

        start(config)


def _has_options(config: pytest.Config) -> bool:
    return any(getattr(config.option, name[2:].replace("-", "_")) not in (None, False) for name, _ in _OPTIONS)


def _has_settings(config: pytest.Config) -> bool:
    """Whether some file upwards from here holds settings of gqacheck; reading them is left to those who do."""
    here = config.invocation_params.dir
    for folder in (here, *here.parents):
        if (folder / "gqacheck.toml").is_file() or _has_table(folder / "pyproject.toml"):
            return True
    return False


def _has_table(path: Path) -> bool:
    """Whether a file has [tool.gqacheck], or is broken; projects that only mention gqacheck pay for no settings."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    if b"gqacheck" not in data:
        return False
    import tomllib

    try:
        tool = tomllib.loads(data.decode()).get("tool")
    except (ValueError, RecursionError):  # whoever reads the settings says what is wrong
        return True
    return isinstance(tool, dict) and "gqacheck" in tool


@pytest.fixture(scope="session")
def gqacheck_report(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """``gqacheck_report(path, **options)``: the report of ``gqacheck.check``; each one is made once per session."""
    from functools import partial

    from gqacheck.plugin.reports import report_of

    return partial(report_of, pytestconfig)


@pytest.fixture(scope="session")
def gqacheck_model(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """``gqacheck_model(path, **options)``: (model, tokenizer) of ``gqacheck.load_model``, loaded once per session.

    The tests of a session share the module: a test that changes it must work on a copy.
    """
    from functools import partial

    from gqacheck.plugin.reports import model_of

    return partial(model_of, pytestconfig)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks what ``@pytest.mark.gqacheck(path, **options)`` names before the marked test runs."""
    if item.nodeid.startswith("gqacheck::"):  # our own items bear the mark for -m alone
        return
    for marker in item.iter_markers("gqacheck"):
        from gqacheck.plugin.reports import require_sound

        require_sound(item.config, *marker.args, **marker.kwargs)
