"""The artifact store beside ostree, restic, borg, git, cp, tar and b3sum, in turn, in one run.

    .venv/bin/python -m bench.store [--rounds 3] [--few | --many] [--large]

A tree of 10,000 files, 193 MB, is taken in, taken in again, taken in with 2 % of it changed,
unpacked and checked: the least seconds of all rounds count, by the clock and by the processor. Each
round has fresh folders, nobody's unwritten pages are left to the next, and each finds its source in
memory. Then 100,000 small files, once: `--many` for the peers too, `--few` without. `--large` has a
single file of 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import trees
from bench.disk import journalled
from bench.store_ours import SEALS, SWITCHES, write_tar
from bench.store_peers import (
    PACKAGES,
    PEERS,
    Peer,
    Took,
    is_here,
    missing_tools,
    prepare,
    run,
)

DISK_BYTES = 8 << 30
MANY_DISK_BYTES = 12 << 30
MANY_INODES = 2_000_000  # some fourteen copies of them, the peers' among them
LARGE_BYTES = 2 << 30
LARGE_DISK_BYTES = 12 << 30  # four copies, and one that is written while it is hashed
CHANGED_SHARE = 0.02
FOLDER, TAR = "gitd, from a folder", "gitd, from a tar"
COPIES, LINKS, ROLL = "gitd, all copied", "gitd, unchanged linked", "gitd, a whole roll"
CHECK, HOLD, SCRUB = "gitd check", "gitd, a release folder", "gitd, a whole scrub"


@dataclass(frozen=True, slots=True)
class Ours:
    """A piece of work of ours: an operation of `bench.store_ours` on one of two stores."""

    name: str
    shop: str
    operation: tuple[str, ...]
    is_durable: bool = True


@dataclass(frozen=True, slots=True)
class Gate:
    """Ours may take at most `most` times what the peer takes."""

    operation: str
    ours: str
    peer: str
    most: float


@dataclass(frozen=True, slots=True)
class Target:
    """Ours takes at most so many seconds, or a third more: machines differ."""

    operation: str
    ours: str
    most_s: float


OURS: dict[str, tuple[Ours, ...]] = {
    "first": (Ours(FOLDER, "shop", ("folder", "{tree}")), Ours(TAR, "shop-tar", ("tar", "{tar}"))),
    "again": (Ours(FOLDER, "shop", ("folder", "{tree}")), Ours(TAR, "shop-tar", ("tar", "{tar}"))),
    "2 % changed": (Ours(FOLDER, "shop", ("folder", "{tree}")),),
    "out": (
        Ours(COPIES, "shop-tar", ("unpack", "one"), is_durable=False),
        Ours(LINKS, "shop-tar", ("unpack", "two", "one"), is_durable=False),
        Ours(ROLL, "shop-tar", ("roll", "three", "two")),
    ),
    "check": (Ours(CHECK, "shop-tar", ("check",)), Ours(HOLD, "shop-tar", ("hold", "one"))),
}
GATES = (
    Gate("first", FOLDER, "ostree commit", 0.6),
    Gate("first", FOLDER, "restic backup", 0.5),
    Gate("first", FOLDER, "git add", 0.4),
    Gate("first", FOLDER, "cp -a, sync", 1.8),
    Gate("again", FOLDER, "ostree commit", 0.25),
    Gate("again", FOLDER, "restic backup", 0.5),
    Gate("again", FOLDER, "borg create", 0.5),
    Gate("again", FOLDER, "b3sum", 1.8),
    Gate("out", LINKS, "cp -al, b3sum of both", 1.3),
    Gate("out", LINKS, "ostree checkout, links, fsck", 0.6),
    Gate("check", CHECK, "b3sum", 1.3),
    Gate("check", HOLD, "b3sum", 1.3),
)
TARGETS = (
    Target("first", FOLDER, 1.6),
    Target("again", FOLDER, 0.5),
    Target("2 % changed", FOLDER, 0.7),
    Target("out", ROLL, 0.6),
)
MANY_TARGETS = (
    Target("first", FOLDER, 12),
    Target("first", TAR, 12),
    Target("again", FOLDER, 3.2),
    Target("again", TAR, 3.2),
    Target("out", LINKS, 2),
)
SEAL_TARGET_S = 0.0002  # to sign a statement, or to verify one
SWITCH_TARGET_S = 0.001  # beside what the disk takes for its two syncs
MANY_PEAK_BYTES = 150_000_000
LARGE_RATES = {  # bytes a second, of one file
    ("first", FOLDER): 450e6,
    ("again", FOLDER): 3e9,
    ("check", HOLD): 1.5e9,
    ("check", SCRUB): 500e6,
}
SLACK = 1.3  # how far a target in seconds may be missed, since machines differ

Results = dict[tuple[str, str], list[Took]]


def main(arguments: Sequence[str] = ()) -> int:
    wished = _parser().parse_args(arguments)
    for tool in missing_tools():
        print(f"{tool} is not here and left out: apt-get install {PACKAGES[tool]}")
    with journalled(DISK_BYTES) as folder:
        missed = _compare(folder, wished.rounds)
    if not wished.few:
        with journalled(MANY_DISK_BYTES, inodes=MANY_INODES) as folder:
            missed += _many(folder, peers=wished.many)
    if wished.large:
        with journalled(LARGE_DISK_BYTES) as folder:
            missed += _large(folder)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.store")
    parser.add_argument("--rounds", type=int, default=3)
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--few", action="store_true", help="no 100,000 files")
    files.add_argument("--many", action="store_true", help="100,000 files, for the peers too")
    parser.add_argument("--large", action="store_true", help="one file of 2 GiB")
    return parser


# -- 10,000 files ---------------------------------------------------------------------------------


def _compare(folder: Path, rounds: int) -> list[str]:
    found = _rounds(folder, trees.SITE, rounds, PEERS)
    print(f"\n{trees.SITE.name}: least of {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    _report(found)
    one_s = _ours(folder / "seals", Ours("", "shop", ("seal",))).cpu_s / SEALS / 2
    print(f"\na statement is signed, or verified, in {one_s * 1000:.3f} ms on average")
    switch_s, disk_s = _switches(folder / "switches")
    print(
        f"a release is switched to in {switch_s * 1000:.2f} ms on average; for {disk_s * 1000:.2f}"
        f" of them a disk is waited for that has a file replaced (target {SWITCH_TARGET_S * 1000}"
        " ms more)"
    )
    missed = [line for gate in GATES if (line := _judge(gate, found))]
    missed += _late(TARGETS, found)
    if one_s > SEAL_TARGET_S * SLACK:
        missed.append(f"signing or verifying took {one_s * 1000:.2f} ms")
    if switch_s - disk_s > SWITCH_TARGET_S * SLACK:
        missed.append(f"a switch took {(switch_s - disk_s) * 1000:.2f} ms besides its syncs")
    return missed


def _switches(folder: Path) -> tuple[float, float]:
    """The seconds that a switch takes, and what a file takes that is replaced as durably: least of
    three each, in turn.
    """
    ours, bare = [], []
    for number in range(3):
        step = Ours("", f"shop{number}", ("switch",))
        ours.append(_ours(folder, step).wall_s / SWITCHES)
        bare.append(_replacing_s(folder / f"bare{number}"))
    return min(ours), min(bare)


def _replacing_s(folder: Path) -> float:
    """As POSIX has it: the file synced, then renamed, then its folder synced."""
    folder.mkdir()
    began = time.perf_counter()
    for _ in range(SWITCHES):
        with (folder / "new").open("wb") as file:
            file.write(bytes(1000))
            file.flush()
            os.fsync(file.fileno())
        (folder / "new").rename(folder / "file")
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return (time.perf_counter() - began) / SWITCHES


def _rounds(
    folder: Path, shape: trees.Shape, rounds: int, peers: dict[str, tuple[Peer, ...]]
) -> Results:
    tree, changed, tar = folder / "tree", folder / "changed", folder / "tree.tar"
    trees.make(shape, tree)
    shutil.copytree(tree, changed, symlinks=True)
    trees.change(shape, changed, share=CHANGED_SHARE)
    write_tar(tree, tar)
    found: Results = defaultdict(list)
    for number in range(rounds):
        work = folder / f"round{number}"
        work.mkdir()
        prepare(work)
        for operation, ours in OURS.items():
            source = changed if operation == "2 % changed" else tree
            steps: list[Ours | Peer] = [*ours, *peers.get(operation, ())]
            # Who begins changes; the order of ours among themselves does not: they build on
            # one another.
            for step in steps if number % 2 else [*steps[len(ours) :], *ours]:
                if isinstance(step, Peer) and not is_here(step.tool):
                    continue
                _settle(folder, source, tar)
                found[operation, step.name].append(_take(step, work, source, tar))
        shutil.rmtree(work)
    for path in (tree, changed):
        shutil.rmtree(path)
    return found


def _take(step: Ours | Peer, work: Path, tree: Path, tar: Path) -> Took:
    if isinstance(step, Peer):
        return run(step.command, work, tree)
    words = [word.format(tree=tree, tar=tar) for word in step.operation]
    return _ours(work, Ours(step.name, step.shop, tuple(words)))


def _ours(work: Path, step: Ours) -> Took:
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.store_ours", step.operation[0], str(work / step.shop)]
    done = subprocess.run([*command, *step.operation[1:]], stdout=subprocess.PIPE, check=True)
    return Took(**json.loads(done.stdout))


def _settle(folder: Path, *sources: Path) -> None:
    """Let nobody cost the next one time: by unwritten pages, or by having the system forget what
    it has read, as borg does.
    """
    subprocess.run(["sync", "-f", folder], check=True)
    for source in sources:
        trees.read(source)


# -- many and large -------------------------------------------------------------------------------


def _many(folder: Path, *, peers: bool) -> list[str]:
    chosen = {name: PEERS[name] for name in ("first", "again", "out")} if peers else {}
    found = _rounds(folder, trees.MANY, 1, chosen)
    print(f"\n{trees.MANY.name}: once, load {os.getloadavg()[0]:.1f}")
    _report(found)
    return _late(MANY_TARGETS, found) + [
        f"{operation}, {name}: {took.peak_bytes / 1e6:.0f} MB of memory (target 150 MB)"
        for (operation, name), (took,) in found.items()
        if name.startswith("gitd") and took.peak_bytes > MANY_PEAK_BYTES
    ]


def _large(folder: Path) -> list[str]:
    tree, work = folder / "large", folder / "round"
    tree.mkdir()
    trees.make_large(tree / "file", LARGE_BYTES)
    found: Results = defaultdict(list)
    steps: list[tuple[str, Ours | Peer]] = [
        ("first", OURS["first"][0]),
        ("first", next(peer for peer in PEERS["first"] if peer.tool == "cp")),
        ("again", OURS["again"][0]),
        ("again", next(peer for peer in PEERS["again"] if peer.tool == "b3sum")),
        ("out", Ours(COPIES, "shop", ("unpack", "one"), is_durable=False)),
        ("check", Ours(HOLD, "shop", ("hold", "one"))),
        ("check", Ours(SCRUB, "shop", ("scrub",))),
    ]
    work.mkdir()
    for operation, step in steps:
        if isinstance(step, Ours) or is_here(step.tool):
            # The rates are those of programs, and what is long does not stay in memory.
            _settle(folder, tree, work)
            found[operation, step.name].append(_take(step, work, tree, tree))
    print(f"\none file of {LARGE_BYTES >> 30} GiB: once, load {os.getloadavg()[0]:.1f}")
    _report(found)
    missed = []
    for (operation, name), least in LARGE_RATES.items():
        rate = LARGE_BYTES / found[operation, name][0].wall_s
        what = f"{operation}: {name}: {rate / 1e6:,.0f} MB/s (target {least / 1e6:,.0f} MB/s)"
        print(what)
        if rate * SLACK < least:
            missed.append(what)
    return missed


# -- results --------------------------------------------------------------------------------------


def _report(found: Results) -> None:
    durable = _durable_names()
    operation = ""
    for (at, name), took in found.items():
        if at != operation:
            print(f"\n{at:<32} {'clock':>9} {'processor':>10} {'memory':>9}")
            operation = at
        mark = "" if (at, name) in durable else "  (not durable)"
        peak = max(one.peak_bytes for one in took)
        memory = f"{peak / 1e6:6.0f} MB" if peak else "         "
        wall_s, cpu_s = _least(took), _least(took, lambda one: one.cpu_s)
        print(f"  {name:<30} {wall_s:7.2f} s {cpu_s:8.2f} s {memory}{mark}")


def _durable_names() -> set[tuple[str, str]]:
    every: list[tuple[str, Ours | Peer]] = [
        (operation, step)
        for table in (OURS, PEERS)
        for operation, steps in table.items()
        for step in steps
    ]
    return {(operation, step.name) for operation, step in every if step.is_durable}


def _least(took: list[Took], of: Callable[[Took], float] = lambda one: one.wall_s) -> float:
    return min(map(of, took))


def _late(targets: Sequence[Target], found: Results) -> list[str]:
    """Print what took how long; return what took too long."""
    late = []
    for target in targets:
        took_s = _least(found[target.operation, target.ours])
        what = f"{target.operation}: {target.ours}: {took_s:.2f} s (target {target.most_s} s)"
        print(what)
        if took_s > target.most_s * SLACK:
            late.append(what)
    return late


def _judge(gate: Gate, found: Results) -> str | None:
    """Print a ratio; return what is wrong with it, if anything is."""
    what = f"{gate.operation}: {gate.ours} / {gate.peer}"
    peer = found.get((gate.operation, gate.peer))
    if peer is None:
        return f"{what} was not measured"
    ours = found[gate.operation, gate.ours]
    ratio = _least(ours) / _least(peer)
    cpu = _least(ours, lambda one: one.cpu_s) / _least(peer, lambda one: one.cpu_s)
    print(f"{what}: x{ratio:.2f} (target x{gate.most}; by the processor x{cpu:.2f})")
    return f"{what}: x{ratio:.2f}, more than x{gate.most}" if ratio > gate.most else None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
