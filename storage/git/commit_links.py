"""The parents and trees of commits that were read, remembered for walks."""

from __future__ import annotations

from storage.git.object_formats import Commit

LINKS_REMEMBERED_MAX = 200_000  # of commits; about 40 MB when each has one parent
COMMIT_LINKS_REMEMBERED_MAX = 1_000  # a commit with more of them is read again


class CommitLinks(dict[bytes, Commit]):
    """The links of commits that were read, until they are too many."""

    links_count = 0

    def note(self, oid: bytes, commit: Commit) -> None:
        """Remember a commit, unless it alone would fill the place of many."""
        count = 1 + len(commit.parents)
        if count > COMMIT_LINKS_REMEMBERED_MAX:
            return
        if self.links_count + count > LINKS_REMEMBERED_MAX:
            self.clear()
            self.links_count = 0
        self[oid] = commit
        self.links_count += count
