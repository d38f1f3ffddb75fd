"""Links that lead out of a tree, alone or together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.links import escaping_link
from storage.manifest import LinkEntry

ESCAPING = {
    "absolute": {"a": "/etc/passwd"},
    "root itself": {"a": "/"},
    "up": {"a": "../x"},
    "up from below": {"a/b": "../../x"},
    "up and back in": {"a": "../output/x"},
    "through another": {"a/up": "..", "m": "a/up/../x"},
    "through a chain": {"a": "b", "b": "c", "c": "../x"},
    "through a deep link to the root": {"a/b/l": "../..", "a/b/m": "l/../x"},
    "host file with dots": {"a": "/usr/bin/python3/../../../etc/passwd"},
    "below a host file": {"a": "/usr/bin/python3/x"},
    "below a host file beside": {"a": "/usr/local/bin/python3/x"},
    "other host file": {"a": "/usr/bin/perl"},
    "host file through up": {"a": "/usr/bin/../../etc/passwd"},
}
STAYING = {
    "sibling": {"a": "b"},
    "from below": {"a/b": "../c"},
    "to the root": {"a/b": ".."},
    "nowhere": {"a": "gone/gone"},
    "loop": {"a": "b", "b": "a"},
    "itself": {"a": "a"},
    "endless": {"a": "a/a"},
    "dots and slashes": {"a": ".//./b/"},
    "interpreter": {"venv/bin/python3": "/usr/bin/python3", "venv/bin/python": "python3"},
    "interpreter with a version": {"python": "/usr/bin/python3.11"},
    "interpreter beside the machine's own": {"python": "/usr/local/bin/python3.14"},
}


def first(links: dict[str, str]) -> LinkEntry | None:
    return escaping_link(LinkEntry(k.encode(), v.encode()) for k, v in links.items())


@pytest.mark.parametrize("links", ESCAPING.values(), ids=ESCAPING)
def test_escaping_link_is_found(links: dict[str, str]) -> None:
    assert first(links) is not None


@pytest.mark.parametrize("links", STAYING.values(), ids=STAYING)
def test_link_that_stays_is_let_be(links: dict[str, str]) -> None:
    assert first(links) is None


def test_links_that_nobody_could_follow_to_their_end_are_not_followed() -> None:
    """Each goes a long way forth and back, and then to the next one."""
    around = "/".join(["a"] * 900 + [".."] * 900)
    chain = {f"l{number}": f"{around}/l{number + 1}" for number in range(60)}
    assert first(chain) is not None


def test_ordinary_links_are_all_followed() -> None:
    bins = {f"node_modules/.bin/p{n}": f"../p{n}/bin/cli.js" for n in range(2000)}
    assert (
        first({**bins, **{f"node_modules/p{n}/bin": "../../packages/x" for n in range(2000)}})
        is None
    )


@pytest.mark.parametrize(("count", "is_followed"), [(38, True), (39, True), (40, False)])
def test_links_are_followed_through_as_many_as_the_kernel_follows(
    tmp_path: Path, count: int, *, is_followed: bool
) -> None:
    # The last of them leads to the root; none of them leads out, and the way up behind them does.
    chain = {f"d/{number}": str(number - 1) for number in range(1, count)}
    links = {"m": f"d/{count - 1}/../outside", "d/0": "..", **chain}
    (tmp_path / "outside").touch()
    (tmp_path / "root" / "d").mkdir(parents=True)
    for path, target in links.items():
        (tmp_path / "root" / path).symlink_to(target)
    assert (tmp_path / "root" / "m").exists() == is_followed
    assert (first(links) is not None) == is_followed


PARTS = st.sampled_from(["..", "a", "b", ".", "c"])
TARGETS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(links=st.dictionaries(st.sampled_from(["l", "m", "a/l", "a/m", "a/b/l"]), TARGETS))
def test_what_is_let_be_stays_in_for_the_kernel_too(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str]
) -> None:
    if first(links) is not None:
        return
    root = tmp_path_factory.mktemp("tree") / "root"
    (root / "a" / "b").mkdir(parents=True)
    for path, target in links.items():
        (root / path).symlink_to(target)
    for path in links:
        try:
            real = os.path.realpath(root / path, strict=True)
        except OSError:
            continue
        assert Path(real).is_relative_to(root.resolve())
