"""Rows of the records, as tests need them: with what they are about, and plain otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from storage.model import SYSTEM, Build, JobStatus

_BUILD = Build(
    *("build_0", "site_1", "env_1", "job_1", None, "", JobStatus.RUNNING),
    clean=False,
    deploys=False,
    pushed=False,
    cached=False,
    profile=None,
    artifact_id=None,
    deployment_id=None,
    superseded_by=None,
    error=None,
    timings={},
    actor=SYSTEM,
    created_at=0,
    started_at=None,
    finished_at=None,
)


def build_row(build_id: str, **facts: Any) -> Build:
    """A build, running for nobody unless `facts` say otherwise."""
    return replace(_BUILD, id=build_id, **facts)
