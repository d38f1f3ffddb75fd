"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench

NOT_BENCHMARKS = {
    "__main__",
    "apache",
    "daemon",
    "disk",
    "measure",
    "store_ours",
    "store_peers",
    "trees",
}


def main() -> int:
    failed = 0
    for module in sorted(info.name for info in pkgutil.iter_modules(bench.__path__)):
        if module not in NOT_BENCHMARKS:
            print(f"\n== {module}", flush=True)
            failed |= importlib.import_module(f"bench.{module}").main() or 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
