"""Data sets as the library itself leaves them on disk: in its cache, in a saved folder, as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets


def cache_data_set(
    cache: Path, repo: str, config: str, splits: Mapping[str, Sequence[str]], column: str = "text"
) -> None:
    """Puts a data set into ``cache`` (HF_DATASETS_CACHE) as if ``repo`` had been loaded from the hub before."""
    scratch = cache / "scratch"
    files = {}
    for split, rows in splits.items():
        files[split] = str(scratch / f"{split}.parquet")
        datasets.Dataset.from_dict({column: list(rows)}).to_parquet(files[split])
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(scratch / "cache"))
    made = next((scratch / "cache" / "parquet").glob("*/*/*/dataset_info.json")).parent
    owner, _, name = repo.rpartition("/")
    home = cache / f"{owner}___{name}" / config / "0.0.0" / ("0" * 40)
    home.parent.mkdir(parents=True)
    made.rename(home)
    for arrow in home.glob("parquet-*.arrow"):
        arrow.rename(home / arrow.name.replace("parquet-", f"{name}-", 1))
    info = json.loads((home / "dataset_info.json").read_text())
    info |= {"builder_name": "parquet", "dataset_name": name, "config_name": config}
    for split in info["splits"].values():
        split["dataset_name"] = name
    (home / "dataset_info.json").write_text(json.dumps(info))
