"""Two things timed in turn in one run: medians, and their ratio pair by pair."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of ours and of the peer, taken in turn so that a drifting machine drifts for both."""

    name: str
    ours_s: list[float]
    peer_s: list[float]

    @property
    def ratio(self) -> float:
        """Median of ours divided by theirs, pair by pair."""
        pairs = zip(self.ours_s, self.peer_s, strict=True)
        return statistics.median(ours / peer for ours, peer in pairs)

    def __str__(self) -> str:
        ours, peer = statistics.median(self.ours_s), statistics.median(self.peer_s)
        return f"{self.name:<48} {ours * 1000:9.1f} ms {peer * 1000:9.1f} ms  x{self.ratio:.2f}"


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(
    name: str,
    ours: Callable[[int], object],
    peer: Callable[[int], object],
    *,
    rounds: int,
    before: Callable[[int], object] = lambda _: None,
) -> Pair:
    """Run both `rounds` times in turn, after one round that does not count.

    Each gets the number of its round, so that it can do something new every time. `before` is
    called before each of the two, and is not timed.
    """
    ours_s, peer_s = [], []
    for number in range(rounds + 1):
        before(number)
        one = timed(functools.partial(ours, number))
        before(number)
        other = timed(functools.partial(peer, number))
        if number:
            ours_s.append(one)
            peer_s.append(other)
    return Pair(name, ours_s, peer_s)


def report(title: str, pairs: list[Pair]) -> None:
    print(f"\n{title:<48} {'ours':>12} {'peer':>12}  ratio")
    for pair in pairs:
        print(pair)


def quantiles(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return (
        f"{name:<48} median {statistics.median(ordered) * 1000:7.1f} ms"
        f"  p95 {ordered[int(len(ordered) * 0.95)] * 1000:7.1f} ms"
        f"  max {ordered[-1] * 1000:7.1f} ms"
    )
