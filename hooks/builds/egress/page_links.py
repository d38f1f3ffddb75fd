"""The links of a web page: what its `<a href>` hold, read in time that grows with the page alone.

Whoever writes a page may mean to stop the reader. So nothing is looked at twice: a tag ends where
it stops being one, and the next is looked for behind that. Only so many are read.

Source: HTML Living Standard, 13.1.2.3 "Attributes".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

TAGS_MAX = 10_000
ATTRIBUTES_MAX = 32  # of one tag

_TAG = re.compile(r"<[aA]\s")
# No two parts that follow each other begin alike, so there is one way to read a text. A quote
# without an end is looked for to the end of the page, which happens once for each kind of quote.
_ATTRIBUTE = re.compile(
    r"""[\s/]*([^\s/<>="']+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s<>"'=]+)))?"""
)


def links_of(page: str) -> Iterator[str]:
    """Give the links of a page in HTML, as they are written, without their fragments."""
    at = 0
    for _ in range(TAGS_MAX):
        tag = _TAG.search(page, at)
        if tag is None:
            return
        at = tag.end()
        for _ in range(ATTRIBUTES_MAX):
            attribute = _ATTRIBUTE.match(page, at)
            if attribute is None:
                break
            at = attribute.end()
            name, *values = attribute.groups()
            if name.lower() == "href":
                link = next((value for value in values if value is not None), "")
                yield link.partition("#")[0]
                break
