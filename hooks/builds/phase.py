"""The names of a build's phases, and how far each is: control needs to know no more of them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Each names the stage of its log lines too."""

    DETECT = "detect"
    SOURCE = "source"
    CACHE = "cache"
    INSTALL = "install"
    BUILD = "build"
    FINISH = "finish"
    COLLECT = "collect"


PROGRESS = {
    Phase.DETECT: 0,
    Phase.SOURCE: 5,
    Phase.CACHE: 8,
    Phase.INSTALL: 10,
    Phase.BUILD: 40,
    Phase.FINISH: 70,
    Phase.COLLECT: 80,
}
