"""The file of results: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.results import read_results, write_results

from .synthetic_results import results


def test_results_survive_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(results(), path)
    assert read_results(path) == results()
    assert list(path.parent.iterdir()) == [path]


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "environment.commit": lambda content: content["environment"].pop("commit"),
    "timings.0.median": lambda content: content["timings"][0].update(median=0),
    "timings.0.dtype": lambda content: content["timings"][0].update(dtype="int8"),
    "memory.0.extra_bytes": lambda content: content["memory"][0].update(extra_bytes=-1),
    "schema_version": lambda content: content.update(schema_version=2),
    "surplus": lambda content: content.update(surplus=1),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_field_that_is_wrong_is_named(field: str, tmp_path: Path) -> None:
    content = json.loads(results().model_dump_json())
    DAMAGE[field](content)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError, match=rf"results\.json holds no results of this version: {field}: .*run`"):
        read_results(path)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"absent\.json cannot be read \(No such file or directory\)"):
        read_results(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"schema_version": 1')
    with pytest.raises(BenchmarkError, match=r"half\.json holds no results of this version: the file: Invalid JSON"):
        read_results(tmp_path / "half.json")
