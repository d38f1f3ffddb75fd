"""Bounds of the git room: everything that a client can make grow or wait."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GitLimits:
    """Units stand in the names.

    Attributes:
        idle_s: longest time without a byte from the client, or without it taking one.
        keepalive_s: a silent side band gets an empty packet this often.
        refs_max: refs of a repository; a push may not make more.
        commands_max: ref updates in one push.
        push_options_max, push_options_bytes_max: `git push -o`, how many and all together.
        pack_bytes_max: a received pack as it is sent.
        objects_max, object_bytes_max: in a received pack; each object inflated.
        request_bytes_max: an upload-pack request, inflated; the commands of a push, and its
            certificate.
        wants_max, haves_max: lines in such a request.
        drain_bytes_max: of a refused push, read on so that its client hears why.
        thread_bytes_max, thread_inflated_bytes_max: packs up to this size, as they are sent and
            inflated, are indexed in a thread of this process, larger ones in a process of their
            own.
        thread_objects_max, thread_pack_bytes_max: repositories up to this size are walked in a
            thread of this process; all that is stored counts, packed and loose.
        thread_answer_bytes_max: packs for fetches up to this size are made in memory there.
        kept_packs_bytes_max: packs of clones that are kept on disk for the next clone.
        worker_count_max: processes for large packs.
        hook_s: longest time for one hook of the repository.
    """

    idle_s: float = 120.0
    keepalive_s: float = 5.0
    refs_max: int = 200_000
    commands_max: int = 100_000
    push_options_max: int = 64
    push_options_bytes_max: int = 64 << 10
    pack_bytes_max: int = 4 << 30
    objects_max: int = 5_000_000
    object_bytes_max: int = 2 << 30
    request_bytes_max: int = 32 << 20
    wants_max: int = 200_000
    haves_max: int = 400_000
    drain_bytes_max: int = 8 << 30
    thread_bytes_max: int = 256 << 10
    thread_inflated_bytes_max: int = 8 << 20
    thread_objects_max: int = 3_000
    thread_pack_bytes_max: int = 4 << 20
    thread_answer_bytes_max: int = 1 << 20
    kept_packs_bytes_max: int = 2 << 30
    worker_count_max: int = 2
    hook_s: float = 600.0
