"""Rows of predictions as a file: CSV, JSON Lines, Parquet, or COCO's results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from svit_deploy.machine.packages import require

Rows = Iterator[dict[str, Any]]
ROW_GROUP = 4096


def write_csv(rows: Rows, file: Path) -> None:
    """A line per image: `label_1`, `name_1`, ... of the first class; `kept_tokens_0` of gate 0."""
    first = flat(next(rows))
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(map(flat, rows))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row without lists: what is ranked counts from 1, gates and views from 0."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        if not isinstance(value, list):
            values[key] = value
        for number, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                values |= {f"{name}_{number + 1}": part for name, part in item.items()}
            elif isinstance(item, list):
                values |= {
                    f"{key}_{number}_{name}": part for name, part in flat({"": item}).items()
                }
            else:
                values[f"{key}_{number}"] = item
    return values


def write_jsonl(rows: Rows, file: Path) -> None:
    """A JSON object a line."""
    with file.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(rows: Rows, file: Path) -> None:
    """Lists remain lists, classes are structs."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    first = Table.from_pylist(list(islice(rows, ROW_GROUP)))
    with ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        while some := list(islice(rows, ROW_GROUP)):
            writer.write_table(Table.from_pylist(some, schema=first.schema))


def write_results(rows: Rows, file: Path) -> None:
    """One JSON list of all images' results."""
    results = chain.from_iterable(row["results"] for row in rows)
    with file.open("w", encoding="utf-8") as stream:
        stream.write("[")
        for number, result in enumerate(results):
            stream.write(f"{',' if number else ''}\n{json.dumps(result, allow_nan=False)}")
        stream.write("\n]\n")


WRITERS: dict[str, Callable[[Rows, Path], None]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "coco": write_results,
}


def require_writer(form: str) -> None:
    """Raises CapabilityError, before any work, where a package is missing."""
    if form == "parquet":
        require("pyarrow", "predict", "Parquet files", extra="parquet", otherwise="use .csv")
