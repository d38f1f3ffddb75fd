"""What a pushed object may look like: git's checks, under git's names and severities.

Source: git-fsck(1), "FSCK MESSAGES"; git's fsck.c. A receiving server checks strictly, as `git
index-pack --strict` does: what fsck calls a warning is an error there, and INFO is a warning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from storage.git.errors import PackInvalidError
from storage.git.fsck_names import GITATTRIBUTES, GITIGNORE, GITMODULES, MAILMAP, is_dotgit
from storage.git.object_formats import COMMIT, NULL_OID, TAG, TREE, TREE_ENTRY

SpecialFile = tuple[str, bytes]  # name and id of a file whose content git acts on


class Severity(StrEnum):
    ERROR = "error"
    WARN = "warn"
    IGNORE = "ignore"


class Finding(NamedTuple):
    """One thing wrong with an object: git's name for it, and git's sentence."""

    id: str
    message: str


# Messages that git grades as INFO (shown, and accepted) or lower; all others refuse the push.
_SEVERITIES = {
    "badfilemode": Severity.WARN,
    "badtagname": Severity.WARN,
    "missingtaggerentry": Severity.WARN,
    "emptypackedrefsfile": Severity.WARN,
    "gitmodulesparse": Severity.WARN,
    "gitattributessymlink": Severity.WARN,
    "gitignoresymlink": Severity.WARN,
    "mailmapsymlink": Severity.WARN,
    "extraheaderentry": Severity.IGNORE,
}

_MODE = rb"(?:100644|100755|40000|120000|160000)"
# Longer names are looked at one by one.
_GOOD_TREE = re.compile(rb"(?:" + _MODE + rb" [^\0/]{1,255}\0[\s\S]{20})*")
_ANY_TREE = re.compile(rb"(?:[0-7]+ [^\0]*\0[\s\S]{20})*")
# Between NULs, which no name has: a search that began at each space would take long.
_NOTABLE_NAME = re.compile(rb"\0(?:\.|\.\.|\.(?:g|ma)[^\0]*)\0", re.IGNORECASE)
# Short names of NTFS, folders of Windows, and the first bytes of what HFS ignores.
_NOTABLE_BYTES = (b"~", b"\\", b"\xe2", b"\xef")
_MAY_BE_SPECIAL = re.compile(rb"\.git[ma]|[~\xe2\xef]", re.IGNORECASE)
_LINK = 0o120000
_IDENTITY = rb"[^\n<>]+ <[^\n<>]*> (?:0|[1-9]\d{0,18}) [+-]\d{4}\n"
_GOOD_COMMIT = re.compile(
    rb"tree [0-9a-f]{40}\n(?:parent [0-9a-f]{40}\n)*author "
    + _IDENTITY
    + rb"committer "
    + _IDENTITY
    + rb"(?!author )[^\0]*",
)
_GOOD_TAG = re.compile(
    rb"object [0-9a-f]{40}\ntype (?:commit|tree|blob|tag)\ntag [^\n\0~^:?*\[\\ ]+\ntagger "
    + _IDENTITY
    + rb"[^\0]*",
)


@dataclass(frozen=True, slots=True)
class FsckRules:
    """Which findings refuse a push.

    Attributes:
        severities: lower-case message id -> severity, over git's own.
        skip: oids that are never checked (`receive.fsck.skipList`).
    """

    severities: Mapping[str, Severity] = field(default_factory=dict)
    skip: frozenset[bytes] = frozenset()

    def severity(self, finding: Finding) -> Severity:
        lowered = finding.id.lower()
        return self.severities.get(lowered) or _SEVERITIES.get(lowered, Severity.ERROR)

    def judge(self, oid: bytes, found: Iterable[Finding]) -> list[str]:
        """Return in words what is wrong with an object and does not refuse it.

        Raises:
            PackInvalidError: something does; the rest is not looked at.
        """
        warnings = []
        for finding in found:
            severity = self.severity(finding)
            if oid in self.skip or severity is Severity.IGNORE:
                continue
            text = f"object {oid.hex()}: {finding.id}: {finding.message}"
            if severity is Severity.ERROR:
                raise PackInvalidError(text)
            warnings.append(text)
        return warnings


def is_clean(kind: int, data: bytes) -> bool:
    """Say quickly whether an object is beyond doubt; if not, `findings` tells."""
    if kind == TREE:
        return (
            _GOOD_TREE.fullmatch(data) is not None
            and NULL_OID not in data
            and _has_plain_entries(data)
        )
    return (_GOOD_COMMIT if kind == COMMIT else _GOOD_TAG).fullmatch(data) is not None


def findings(kind: int, data: bytes) -> Iterator[Finding]:
    """Yield what is wrong with an object, in the order of its bytes."""
    if kind in (COMMIT, TREE, TAG) and not is_clean(kind, data):
        match kind:
            case 1:
                yield from _commit_findings(data)
            case 2:
                yield from _tree_findings(data)
            case _:
                yield from _tag_findings(data)


# trees


def _has_plain_entries(data: bytes) -> bool:
    """Say whether names are in order, each there once, and none of them is notable."""
    entries = TREE_ENTRY.findall(data)
    keys = [name + b"/" if mode == b"40000" else name for mode, name, _ in entries]
    names = [name for _, name, _ in entries]
    if keys != sorted(keys) or len(set(names)) != len(names):
        return False
    joined = b"\0%b\0" % b"\0".join(names)
    is_notable = any(byte in joined for byte in _NOTABLE_BYTES)
    return not is_notable and _NOTABLE_NAME.search(joined) is None


def _tree_findings(data: bytes) -> Iterator[Finding]:
    if not _ANY_TREE.fullmatch(data):
        yield Finding("badTree", "cannot be parsed as a tree")
        return
    entries = re.findall(rb"([0-7]+) ([^\0]*)\0([\s\S]{20})", data)
    seen: set[str] = set()
    for mode, name, oid in entries:
        for finding in _entry_findings(mode, name, oid):
            if finding.id not in seen:
                seen.add(finding.id)
                yield finding
    yield from _order_findings([(mode, name) for mode, name, _ in entries])


def _entry_findings(mode: bytes, name: bytes, oid: bytes) -> Iterator[Finding]:
    if oid == NULL_OID:
        yield Finding("nullSha1", "contains entries pointing to null sha1")
    if b"/" in name:
        yield Finding("fullPathname", "contains full pathnames")
    if not name:
        yield Finding("emptyName", "contains empty pathname")
    if name == b".":
        yield Finding("hasDot", "contains '.'")
    if name == b"..":
        yield Finding("hasDotdot", "contains '..'")
    if is_dotgit(name):
        yield Finding("hasDotgit", "contains '.git'")
    if mode.startswith(b"0"):
        yield Finding("zeroPaddedFilemode", "contains zero-padded file modes")
    if int(mode, 8) not in (0o100644, 0o100755, 0o40000, 0o120000, 0o160000):
        yield Finding("badFilemode", "contains bad file modes")
    if int(mode, 8) == _LINK:
        if GITMODULES.is_meant_by_part_of(name):
            yield Finding("gitmodulesSymlink", ".gitmodules is a symbolic link")
        for special in (GITATTRIBUTES, GITIGNORE, MAILMAP):
            if special.is_meant_by(name):
                yield Finding(f"{special.name[1:]}Symlink", f"{special.name} is a symlink")


def _order_findings(entries: list[tuple[bytes, bytes]]) -> Iterator[Finding]:
    names = [name for _, name in entries]
    if len(set(names)) != len(names):
        yield Finding("duplicateEntries", "contains duplicate file entries")
        return
    keys = [name + b"/" if int(mode, 8) == 0o40000 else name for mode, name in entries]
    if any(later <= earlier for earlier, later in itertools.pairwise(keys)):
        yield Finding("treeNotSorted", "not properly sorted")


def special_files(data: bytes) -> Iterator[SpecialFile]:
    """Yield the files of a tree whose content git acts on: their names, and what they have in them.

    As git, without links, which are refused or nothing to it.
    """
    if not _MAY_BE_SPECIAL.search(data):
        return
    for mode, name, oid in TREE_ENTRY.findall(data):
        if int(mode, 8) != _LINK:
            if GITMODULES.is_meant_by_part_of(name):
                yield GITMODULES.name, oid
            if GITATTRIBUTES.is_meant_by(name):
                yield GITATTRIBUTES.name, oid


# commits and tags


def _commit_findings(data: bytes) -> Iterator[Finding]:
    head, separator, body = data.partition(b"\n\n")
    lines = _Lines(head + b"\n" if separator else data)
    if b"\0" in head:
        yield Finding("nulInHeader", "unterminated header: NUL in the header")
        return
    if not data.endswith(b"\n") and not separator:
        yield Finding("unterminatedHeader", "unterminated header")
        return
    tree = lines.take(b"tree ")
    if tree is None:
        yield Finding("missingTree", "invalid format - expected 'tree' line")
        return
    if not re.fullmatch(rb"[0-9a-f]{40}", tree):
        yield Finding("badTreeSha1", "invalid 'tree' line format - bad sha1")
        return
    while (parent := lines.take(b"parent ")) is not None:
        if not re.fullmatch(rb"[0-9a-f]{40}", parent):
            yield Finding("badParentSha1", "invalid 'parent' line format - bad sha1")
            return
    authors = 0
    while (author := lines.take(b"author ")) is not None:
        authors += 1
        yield from _identity_findings(author)
    if not authors:
        yield Finding("missingAuthor", "invalid format - expected 'author' line")
        return
    if authors > 1:
        yield Finding("multipleAuthors", "invalid format - multiple 'author' lines")
    committer = lines.take(b"committer ")
    if committer is None:
        yield Finding("missingCommitter", "invalid format - expected 'committer' line")
        return
    yield from _identity_findings(committer)
    if b"\0" in body:
        yield Finding("nulInCommit", "NUL byte in the commit object body")


def _tag_findings(data: bytes) -> Iterator[Finding]:
    head, separator, _ = data.partition(b"\n\n")
    lines = _Lines(head + b"\n" if separator else data)
    if b"\0" in head:
        yield Finding("nulInHeader", "unterminated header: NUL in the header")
        return
    target = lines.take(b"object ")
    if target is None:
        yield Finding("missingObject", "invalid format - expected 'object' line")
        return
    if not re.fullmatch(rb"[0-9a-f]{40}", target):
        yield Finding("badObjectSha1", "invalid 'object' line format - bad sha1")
        return
    kind = lines.take(b"type ")
    if kind is None:
        yield Finding("missingTypeEntry", "invalid format - expected 'type' line")
        return
    if kind not in (b"commit", b"tree", b"blob", b"tag"):
        yield Finding("badType", "invalid 'type' value")
    name = lines.take(b"tag ")
    if name is None:
        yield Finding("missingTagEntry", "invalid format - expected 'tag' line")
        return
    if re.search(rb"[\0-\x20~^:?*\[\\]|\.\.|\.lock$|^\.|^$", name):
        yield Finding("badTagName", f"invalid 'tag' name: {name.decode('utf-8', 'replace')}")
    tagger = lines.take(b"tagger ")
    if tagger is None:
        yield Finding("missingTaggerEntry", "invalid format - expected 'tagger' line")
    else:
        yield from _identity_findings(tagger)


class _Lines:
    """Header lines, taken one by one."""

    def __init__(self, head: bytes) -> None:
        self._lines = head.split(b"\n")
        self._at = 0

    def take(self, prefix: bytes) -> bytes | None:
        """Return the rest of the next line if it begins with `prefix`."""
        if self._at < len(self._lines) and self._lines[self._at].startswith(prefix):
            self._at += 1
            return self._lines[self._at - 1][len(prefix) :]
        return None


def _identity_findings(line: bytes) -> Iterator[Finding]:
    """Check `Name <email> time zone`, as git's fsck_ident does: the first finding ends it."""
    start = "invalid author/committer line - "
    name_end = re.search(rb"[<>]", line)
    if line.startswith(b"<"):
        yield Finding("missingNameBeforeEmail", start + "missing space before email")
        return
    if name_end is None:
        yield Finding("missingEmail", start + "missing email")
        return
    if name_end[0] == b">":
        yield Finding("badName", start + "bad name")
        return
    if line[name_end.start() - 1 : name_end.start()] != b" ":
        yield Finding("missingSpaceBeforeEmail", start + "missing space before email")
        return
    rest = line[name_end.end() :]
    email_end = re.search(rb"[<>]", rest)
    if email_end is None or email_end[0] != b">":
        yield Finding("badEmail", start + "bad email")
        return
    rest = rest[email_end.end() :]
    if not rest.startswith(b" "):
        yield Finding("missingSpaceBeforeDate", start + "missing space before date")
        return
    rest = rest[1:]
    if rest.startswith(b"0") and not rest.startswith(b"0 "):
        yield Finding("zeroPaddedDate", start + "zero-padded date")
        return
    date = re.match(rb"\d+", rest)
    if date is None or rest[date.end() : date.end() + 1] != b" ":
        yield Finding("badDate", start + "bad date")
        return
    if len(date[0]) > 19:
        yield Finding("badDateOverflow", start + "date causes integer overflow")
        return
    if not re.fullmatch(rb"[+-]\d{4}", rest[date.end() + 1 :]):
        yield Finding("badTimezone", start + "bad time zone")
