"""The checks as functions: of a file or folder, of a live module, and as an assertion. Nothing here prints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gqacheck.errors import GqacheckError, UsageError
from gqacheck.options import from_python, make_options
from gqacheck.pipeline import Opened, check_opened, check_path
from gqacheck.result import CheckpointReport


class UnsoundModelError(GqacheckError, AssertionError):
    """``assert_sound`` found errors; the message is the text report, ``report`` the report itself."""

    exit_code = 1

    def __init__(self, message: str, report: CheckpointReport) -> None:
        super().__init__(message)
        self.report = report


def check(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    family: str | None = None,
    head_dim: int | None = None,
    expect_layers: int | None = None,
    expect_ratio: tuple[int, int] | str | None = None,
    ppl: Sequence[str] | str | bool = (),
    generate: bool = False,
    consistency: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    select: Sequence[str] | str = (),
    ignore: Sequence[str] | str = (),
    fail_on: str = "error",
    require: Sequence[str] | str = (),
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    no_early_stop: bool = False,
    max_ppl_ratio: float | None = None,
    values: bool = False,
) -> CheckpointReport:
    """The report on one checkpoint: a file or a folder. Reads headers only, unless ``base`` or ``values`` ask for the
    weights or ``ppl`` asks to run the model.

    The keywords are the options of the command line (``gqacheck --help``); ``ppl=["smoke"]`` is ``--ppl``. A file
    that cannot be read gives a report whose ``error`` says why and whose ``exit_code`` is 3.

        >>> report = check("pytorch_model.bin", expect_ratio=(4, 1))
        >>> report.verdict, [finding.code for finding in report.findings]
        (<Verdict.FAIL: 'fail'>, ['GQA104'])

    Raises: UsageError for options that make no sense.
    """
    given = from_python(
        base=base,
        config=config,
        family=family,
        head_dim=head_dim,
        expect_layers=expect_layers,
        expect_ratio=expect_ratio,
        ppl=ppl,
        generate=generate,
        consistency=consistency,
        tokenizer=tokenizer,
        select=select,
        ignore=ignore,
        fail_on=fail_on,
        require=require,
        device=device,
        dtype=dtype,
        device_map=device_map,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        no_early_stop=no_early_stop,
        max_ppl_ratio=max_ppl_ratio,
        values=values,
    )
    return check_path(os.fspath(path), make_options(given))


def check_model(
    model: Any,
    tokenizer: Any = None,
    *,
    base: Any = None,
    expect_layers: int | None = None,
    expect_ratio: tuple[int, int] | str | None = None,
    ppl: Sequence[str] | str | bool = (),
    generate: bool = False,
    consistency: bool = False,
    select: Sequence[str] | str = (),
    ignore: Sequence[str] | str = (),
    fail_on: str = "error",
    require: Sequence[str] | str = (),
    batch_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    no_early_stop: bool = False,
    max_ppl_ratio: float | None = None,
    values: bool = False,
) -> CheckpointReport:
    """The report on a live ``nn.Module``: its shapes, its attributes and its config, and what it does when it is run.

    tokenizer: what the model is run on text with; ppl: corpora as ``--ppl`` takes them (True for the built-in one),
    generate, consistency: the other runtime checks. The model is run where it is, as it is; its mode is restored::

        >>> report = check_model(model, tokenizer, ppl=["smoke", "held-out.txt"], generate=True)
        >>> [(p.corpus, round(p.value, 2)) for p in report.runtime.perplexities]
        [('smoke', 12.31), ('held-out.txt', 9.87)]

    base: the parent, a path or another live module; then its weights are compared too, and it is run beside the model.
    values: without a parent, look for signs of a wrong pairing in the weights. A module without decoder layers gives a
    report whose ``error`` says so and whose ``exit_code`` is 3.

    Raises: UsageError for options that make no sense.
    """
    from gqacheck.runtime.live import describe_model, live_samples

    if isinstance(tokenizer, (str, os.PathLike)):
        raise UsageError("check_model takes the tokenizer itself: AutoTokenizer.from_pretrained(PATH) makes one")
    live_base = base if base is not None and not isinstance(base, (str, os.PathLike)) else None
    given = from_python(
        base=None if live_base is not None else base,
        expect_layers=expect_layers,
        expect_ratio=expect_ratio,
        ppl=ppl,
        generate=generate,
        consistency=consistency,
        select=select,
        ignore=ignore,
        fail_on=fail_on,
        require=require,
        batch_size=batch_size,
        seed=seed,
        limit=limit,
        no_early_stop=no_early_stop,
        max_ppl_ratio=max_ppl_ratio,
        values=values,
    )
    options = make_options(given)
    parent = None
    if live_base is not None:
        parent = Opened(describe_model(live_base), live_samples(live_base), live_base)
    return check_opened(
        "live model", lambda: Opened(describe_model(model), live_samples(model), model, tokenizer), options, parent
    )


def assert_sound(model: Any, **options: Any) -> None:
    """Returns when ``check_model(model, **options)`` finds nothing wrong; paste it before ``torch.save``.

    What could not be checked is not sound either: ``require`` is ``("shapes",)`` unless given.

    Raises: UnsoundModelError (an AssertionError) with the text report as its message.
    """
    report = check_model(model, **{"require": ("shapes",), **options})
    if report.exit_code:
        from gqacheck.report.text import render_checkpoint

        raise UnsoundModelError("the model is not sound\n\n" + render_checkpoint(report), report)
