"""Links of pages, as people write them and as those do who mean to stop the reader."""

from __future__ import annotations

import time

import pytest

from hooks.builds.egress.page_links import ATTRIBUTES_MAX, TAGS_MAX, links_of

PAGE_CHARS = 4 << 20


@pytest.mark.parametrize(
    ("page", "links"),
    [
        ('<a href="https://files.example/a.whl#sha256=0">a</a>', ["https://files.example/a.whl"]),
        ("<A\n data-x='' HREF = '../b' >", ["../b"]),
        ("<a href=/c?x rel=internal>", ["/c?x"]),
        ('<a data-requires-python=">=3.7" href="d">', ["d"]),
        ('<a title="no href=\'x\'" href="e" href="f">', ["e"]),
        ('<a data-href="x">, <a>, <abbr href="x">, <a hreflang="x">, a href="x"', []),
        ('<a name <a href="g"> <a "> <a href="h">', ["g", "h"]),
        ('<a href="#top"> <a href> <a href="i', ["", "", ""]),
    ],
)
def test_links_are_what_the_tags_hold(page, links):
    assert list(links_of(page)) == links


def test_no_more_tags_and_attributes_are_read_than_a_page_has_in_earnest():
    assert len(list(links_of('<a href="x">' * (TAGS_MAX + 1)))) == TAGS_MAX
    assert list(links_of(f'<a {"x " * (ATTRIBUTES_MAX - 1)}href="y">')) == ["y"]
    assert list(links_of(f'<a {"x " * ATTRIBUTES_MAX}href="y"> <a href="z">')) == ["z"]


@pytest.mark.parametrize(
    "begun",
    ["", "<a x", '<a href="'],
)
@pytest.mark.parametrize(
    "piece",
    [
        *("<", "<a ", "<a href=", "<a href", "<a href=\"<a href='", "<a x='\" ", "<a x"),
        *(" ", "/", "x", "x ", "x = ", "'", '"'),
        *("<a" + " " * 500, "<a x" + " " * 500, "<a x=" + " " * 500, "<a" + " x" * 100),
    ],
)
def test_page_that_means_to_stop_its_reader_is_read_at_once(begun, piece):
    page = (begun + piece * (PAGE_CHARS // len(piece)))[:PAGE_CHARS]
    started_at = time.process_time()
    assert len(list(links_of(page))) <= TAGS_MAX
    # About 0.2 s. Looked at again from each tag on, as a search for whole tags does, it is hours.
    assert time.process_time() - started_at < 10
