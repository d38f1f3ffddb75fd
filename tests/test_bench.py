"""Benchmarks start: none rots unseen between the days on which somebody runs it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import bench
from bench import api_reads
from bench.__main__ import NOT_BENCHMARKS


def test_every_benchmark_can_be_imported_and_has_a_main() -> None:
    names = {info.name for info in pkgutil.iter_modules(bench.__path__)} - NOT_BENCHMARKS
    mains = {name: importlib.import_module(f"bench.{name}").main for name in names}
    assert all(map(callable, mains.values()))


def test_servers_of_the_reads_benchmark_answer_alike(tmp_path: Path) -> None:
    api = api_reads.Server("--api", str(tmp_path))
    try:
        secret, job_id = api.hello
        paths = api_reads.paths_of(job_id)
        bodies = {
            name: api_reads.body_of(api.port, api_reads.request_of(path, secret))
            for name, path in paths.items()
        }
    finally:
        api.stop()
    assert bodies["20 jobs"].count(b'"type":"build.run"') == 20
    sample = tmp_path / "sample"
    sample.write_bytes(bodies["one job"])
    bare = api_reads.Server("--bare", str(sample))
    try:
        asked = api_reads.request_of("/", "x")
        assert api_reads.body_of(bare.port, asked) == bodies["one job"]
        assert api_reads.rate(bare.port, asked, 0.05)[1] > 0
    finally:
        bare.stop()
