"""Rows of a data set through ``datasets``: its cache first, then the hub where that is allowed, within a time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gqacheck.errors import GqacheckError, MissingDependency, ReadError, UsageError
from gqacheck.runtime.corpora.files import Rows, choose_column, collect, read_rows
from gqacheck.text import printable

ANSWER_SECONDS = 8.0
"""How long the hub may take to answer whether it has a data set."""
FETCH_SECONDS = 300.0
"""How long a data set may take to arrive."""
WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIG = "wikitext-2-raw-v1"
_WIKITEXT_FILE = f"{WIKITEXT_CONFIG}/test-00000-of-00001.parquet"
_SPLITS = ("test", "validation")
_LOGGERS = ("datasets", "huggingface_hub", "fsspec", "filelock")

_T = TypeVar("_T")


def wikitext_rows() -> tuple[str, ...]:
    """The test split of wikitext-2-raw-v1.

    Raises:
        ReadError: it is in no cache and the hub was not reached; the sentence says how to give it as a file.
    """
    try:
        options = {"name": WIKITEXT_CONFIG, "split": "test", "column": "text"}
        return dataset_rows(WIKITEXT, options, stream=False).texts
    except ReadError as error:
        path = _in_hub_cache(WIKITEXT, _WIKITEXT_FILE)
        if path:
            return read_rows(path, "text").texts
        raise ReadError(
            f"wikitext2 is not available: {error}; give the file instead: --ppl wikitext2=FILE (wiki.test.raw, or the "
            "test split as .parquet or .jsonl)"
        ) from error


def dataset_rows(source: str, options: dict[str, str], *, limit: int | None = None, stream: bool = True) -> Rows:
    """The texts of one column of a data set of the hub (``ORG/NAME``), or of a folder that save_to_disk wrote.

    stream: whether only what is read is fetched, and nothing is kept; else the whole configuration goes to the cache.

    Raises:
        UsageError: no such configuration, split or column, or several and none was named.
        ReadError: not cached and not reached, or what it holds is no text, or too much.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("reading a data set", "run") from error
    name, split, revision = (options.get(key) for key in ("name", "split", "revision"))

    def rows(data: Any) -> Rows:
        return _rows(_one_split(data, source), source, options.get("column", ""), limit)

    with _quiet(datasets):
        if os.path.isdir(source):
            return _plainly(lambda: rows(_from_disk(datasets, source, split)), source)
        offline = _is_offline(datasets)
        if revision is None:
            with _offline(datasets):
                cached = _cached(datasets, source, name, split)
            if cached is not None:
                return _plainly(lambda: rows(cached), source)
        if offline:
            where = datasets.config.HF_DATASETS_CACHE
            raise ReadError(f"{source} is not in the cache of datasets ({where}), and the hub is switched off")
        _within(ANSWER_SECONDS * 2, lambda: _ask_hub(datasets, source, revision), source)
        settings = {"name": name, "split": split, "revision": revision, "streaming": stream, **_no_code(datasets)}
        config = datasets.DownloadConfig(max_retries=1)
        return _within(
            FETCH_SECONDS, lambda: rows(datasets.load_dataset(source, download_config=config, **settings)), source
        )


def is_saved_folder(path: str) -> bool:
    """Whether ``path`` is a folder as save_to_disk writes it."""
    return any(os.path.isfile(os.path.join(path, file)) for file in ("state.json", "dataset_dict.json"))


def _cached(datasets: Any, source: str, name: str | None, split: str | None) -> Any | None:
    """The data set out of the cache; None when it is not there. Raises UsageError for a configuration that is not."""
    try:
        return datasets.load_dataset(source, name, split=split)
    except (ConnectionError, FileNotFoundError):
        return None
    except ValueError as error:
        if "multiple" in str(error):
            raise UsageError(_say_which(source, error)) from error
        if "cache" in str(error).lower():
            return None  # of another configuration
        raise UsageError(f"{source}: {printable(_first_line(error))}") from error
    except Exception as error:
        raise ReadError(f"the cached {source} cannot be read: {_one_line(error)}") from error


def _from_disk(datasets: Any, path: str, split: str | None) -> Any:
    if not is_saved_folder(path):
        raise UsageError(f"{path} is not a data set as save_to_disk writes it; give its file by itself: --ppl FILE")
    data = datasets.load_from_disk(path)
    if split is None:
        return data
    if not isinstance(data, dict):
        raise UsageError(f"{path} is one split already; leave split={split} out")
    if split not in data:
        raise UsageError(f"{path} has no split {split!r}; it has {', '.join(map(str, data))}")
    return data[split]


def _one_split(data: Any, source: str) -> Any:
    """The test split of several, else the validation split, else the only one. Raises UsageError."""
    if not isinstance(data, dict):
        return data
    splits = list(data)
    for split in (*_SPLITS, *(splits if len(splits) == 1 else ())):
        if split in data:
            return data[split]
    raise UsageError(
        f"{source} has the splits {', '.join(printable(s, 40) for s in splits[:8])}: say which one, with ?split=NAME"
    )


def _rows(data: Any, source: str, column: str, limit: int | None) -> Rows:
    features = data.features
    if features is None:  # a stream whose types are only known by looking
        features = data._resolve_features().features or {}
    words = ("string", "large_string", "string_view")
    texts = {name: getattr(kind, "dtype", "") in words for name, kind in features.items()}
    name = choose_column(texts, column, source)
    batches = data.select_columns([name]).iter(batch_size=64)
    return Rows(collect(enumerate((text for batch in batches for text in batch[name]), 1), source, limit), name)


def _ask_hub(datasets: Any, source: str, revision: str | None) -> None:
    """Returns when the hub has the data set. Raises ReadError with the reason otherwise."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(source, revision=revision, timeout=ANSWER_SECONDS)
    except HfHubHTTPError as error:
        raise ReadError(f"the hub has no {source} for us: {_one_line(error)}") from error
    except Exception as error:
        raise ReadError(f"{source} is not in the cache, and the hub does not answer ({_one_line(error)})") from error


def _within(seconds: float, work: Callable[[], _T], source: str) -> _T:
    """What ``work`` returns. Raises ReadError after ``seconds``: name lookups and retries keep to no limit."""
    done: list[_T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(_plainly(work, source))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise ReadError(f"{source} is not in the cache, and did not arrive from the hub within {seconds:.0f} s")
    return done[0]


def _plainly(work: Callable[[], _T], source: str) -> _T:
    """What ``work`` returns; what the library raised is one sentence of ours."""
    try:
        return work()
    except GqacheckError:
        raise
    except ValueError as error:
        if "onfig name is missing" in str(error) or "BuilderConfig" in str(error):
            raise UsageError(_say_which(source, error)) from error
        if "split" in str(error).lower():
            raise UsageError(f"{source}: {_first_line(error)}; say another one with ?split=NAME") from error
        raise ReadError(f"{source} cannot be read: {_one_line(error)}") from error
    except RuntimeError as error:
        if "script" in str(error):
            raise ReadError(
                f"{source} is a data set made by a script, which is never run; save its rows as .jsonl and give that"
            ) from error
        raise ReadError(f"{source} cannot be read: {_one_line(error)}") from error
    except Exception as error:
        raise ReadError(f"{source} cannot be read: {_one_line(error)}") from error


def _say_which(source: str, error: Exception) -> str:
    return f"{source} needs the name of a configuration, with ?name=NAME: {printable(' '.join(str(error).split()))}"


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [""])[0])


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}" if _first_line(error) else type(error).__name__


def _in_hub_cache(repo: str, file: str) -> str:
    """The path of a file that was downloaded before by other means; "" when there is none."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(repo, file, repo_type="dataset")
    except Exception:
        return ""
    return found if isinstance(found, str) else ""


def _no_code(datasets: Any) -> dict[str, bool]:
    """Before version 4 data sets could bring code to run; from then on the argument is gone."""
    return {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}


def _is_offline(datasets: Any) -> bool:
    import huggingface_hub.constants as hub

    return bool(datasets.config.HF_HUB_OFFLINE or hub.HF_HUB_OFFLINE)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Inside, only the cache is asked."""
    import huggingface_hub.constants as hub

    places = [(place, name) for place in (datasets.config, hub) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    try:
        for place, name, _ in before:
            setattr(place, name, True)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Inside, the library prints nothing and tries a failing read twice; its state is put back on the way out."""
    from datasets.utils.logging import is_progress_bar_enabled

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = is_progress_bar_enabled()
    retries = ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES")
    before = {name: getattr(datasets.config, name) for name in retries if hasattr(datasets.config, name)}
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        for name in before:
            setattr(datasets.config, name, 2)
        yield
    finally:
        for name, value in before.items():
            setattr(datasets.config, name, value)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
