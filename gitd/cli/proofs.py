"""mf artifacts export and verify: an artifact with its proof as a file, and what it proves.

`verify` needs no server. The rules are the store's own (`storage.proof`): the one thing of gitd
that `mf` shares. It is imported when it is needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO

import click

from gitd.cli.answers import Fields
from gitd.cli.exits import CliError, ExitCode
from gitd.cli.options import Place, json_option, place_options
from gitd.cli.session import Session
from gitd.cli.tables import print_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.proof import Beliefs, Proven

DRAFT_SUFFIX = ".part"
DRAFT_FRESH_S = 5.0  # so long one may be there and not yet be locked
STDOUT = "-"
KEY_ID = re.compile("ed25519:[0-9a-f]{64}")


class NotProvenError(CliError):
    """The files are not what they should be. Source: contract section 7: the work has failed."""

    exit_code = ExitCode.FAILED

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, "Do not use it. Get it again from where it was made.")
        self._code = code

    def code(self) -> str:
        return self._code


@click.command("export")
@place_options
@click.argument("artifact")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where to write it, `-` for standard output. Without it, ARTIFACT.tar.",
)
@json_option
@click.pass_obj
def export_artifact(session: Session, place: Place, artifact: str, output: str | None) -> None:
    """Write an artifact with all that proves it into one archive.

    The archive has the files, the manifest, the signed statements and the public keys.
    """
    path = place.endpoint("artifacts", artifact, "export")
    if output == STDOUT:
        session.api.download(path, sys.stdout.buffer)
        return
    target = Path(output or f"{artifact}.tar")
    with _draft(target) as out:
        size_bytes = session.api.download(path, out)
    session.show(
        {"artifact": artifact, "file": str(target), "size": size_bytes},
        lambda: click.echo(f"{target}: {size_bytes} bytes. Check it: mf artifacts verify {target}"),
    )


@click.command("verify")
@click.argument("path", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.option(
    "--root-key",
    "root_keys",
    multiple=True,
    metavar="KEY_ID",
    help="The root key that trust begins with, as `gitd signing-key list` shows it. May be "
    "repeated. Without it the proof's own is believed.",
)
@click.option(
    "--min-generation",
    type=click.IntRange(1),
    metavar="N",
    help="How many generations of trust there are at least, as `gitd signing-key list` says. A "
    "proof with fewer does not know what was revoked since.",
)
@click.option(
    "--trust",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A copy of the server's store/trust: what was revoked there counts.",
)
@click.option(
    "--proof",
    type=click.Path(path_type=Path),
    help="What proves the release folder DIR: an export, or what lies beside it (DIR.proof), "
    "which is taken by itself.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Hold the folder DIR against this manifest alone, and check nobody's signature.",
)
@json_option
@click.pass_obj
def verify_artifact(
    session: Session,
    *,
    path: Path,
    root_keys: tuple[str, ...],
    min_generation: int | None,
    trust: Path | None,
    proof: Path | None,
    manifest: Path | None,
) -> None:
    """Check an exported archive, or a release folder, without any server.

    FILE is an archive that `mf artifacts export` wrote; DIR is what it was unpacked to, or a folder
    that a site host serves from. Every file, name, mode and signature is checked.
    """
    for given in (path, proof, manifest, trust):
        if given is not None and not given.exists():
            raise click.UsageError(f"{given} is not there, or not to be seen by this user.")
    if manifest is not None and (proof or root_keys or min_generation or trust):
        raise click.UsageError("--manifest checks no signature: give it alone.")
    for key_id in root_keys:
        if not KEY_ID.fullmatch(key_id):
            raise click.UsageError(
                f"--root-key: {key_id!r} is no key id, which is ed25519: and 64 hexadecimal digits."
            )
    if path.is_file() and (proof is not None or manifest is not None):
        raise click.UsageError("--proof and --manifest are for folders: FILE is an archive.")
    from storage.proof import Beliefs

    with _as_exits(path):
        if manifest is not None:
            _show_bare(session, path, manifest)
            return
        beliefs = Beliefs.read(frozenset(root_keys) or None, min_generation or 1, trust)
        proven = _proven(path, proof, beliefs)
    session.show(_fields(proven), lambda: _print(proven, path))


def _proven(path: Path, proof: Path | None, beliefs: Beliefs) -> Proven:
    from storage.proof import (
        is_unpacked,
        proof_beside,
        verify_archive,
        verify_release_folder,
        verify_unpacked,
    )

    if path.is_file():
        with path.open("rb") as stream:
            return verify_archive(stream, beliefs)
    folder = path.resolve()  # the host's `current` is a link to the folder that it serves
    if proof is None and is_unpacked(folder):
        return verify_unpacked(folder, beliefs)
    beside = proof or proof_beside(folder)
    if not beside.is_file():
        raise click.UsageError(
            f"Nothing beside {folder} proves it: name an export with --proof, or a manifest with "
            "--manifest."
        )
    with beside.open("rb") as stream:
        return verify_release_folder(folder, stream, beliefs)


def _show_bare(session: Session, folder: Path, manifest: Path) -> None:
    from storage.proof import verify_bare

    artifact_id, found = verify_bare(folder.resolve(), manifest)
    facts = {
        "artifact_id": artifact_id,
        "digest": str(found.digest),
        "files": found.files,
        "size": found.size_bytes,
    }

    def tell() -> None:
        click.echo(f"{folder} has exactly what {manifest} lists.")
        print_fields(facts)
        click.echo("Nobody's signature was checked: compare the digest.", err=True)

    session.show(facts, tell)


def _fields(proven: Proven) -> Fields:
    """What was proven, as a program reads it. Names are those of the API where it has them."""
    return {
        "artifact_id": proven.artifact_id,
        "digest": str(proven.manifest.digest),
        "manifest_sha256": proven.manifest.sha256,
        "files": proven.manifest.files,
        "size": proven.manifest.size_bytes,
        "root_keys": sorted(proven.keyring.roots),
        "root_keys_pinned": proven.is_pinned,
        "generation": proven.keyring.version,
        "provenance": [
            {
                "site": signed.provenance.site,
                "environment": signed.provenance.environment,
                "ref": signed.provenance.ref,
                "commit": signed.provenance.commit,
                "tree": signed.provenance.tree,
                "profile": signed.provenance.profile,
                "settings": dict(signed.provenance.settings),
                "toolchain": dict(signed.provenance.toolchain),
                "cache_inputs": dict(signed.provenance.cache_inputs),
                "builder": signed.provenance.builder,
                "build_id": signed.provenance.build_id,
                "started_at": signed.provenance.started_at,
                "finished_at": signed.provenance.finished_at,
                "key_id": signed.key_id,
            }
            for signed in proven.provenance
        ],
        "releases": [
            {
                "environment_id": released.release.env_id,
                "environment": released.release.environment,
                "sequence": released.release.sequence,
                "deployment_id": released.release.deployment_id,
                "rollback": released.release.rollback,
                "issued_at": released.release.issued_at,
                "expires_at": released.release.expires_at,
                "key_id": released.key_id,
            }
            for released in proven.releases
        ],
    }


def _print(proven: Proven, path: Path) -> None:
    said = proven.provenance[-1].provenance
    click.echo(f"{path} is what it says.")
    facts: dict[str, object] = {
        "artifact": proven.artifact_id,
        "digest": str(proven.manifest.digest),
        "files": f"{proven.manifest.files}, {proven.manifest.size_bytes} bytes",
        "site": said.site,
        "commit": said.commit,
        "ref": said.ref,
        "build": f"{said.build_id}, {said.finished_at}",
        "signed by": _signer(proven),
        "trust": f"generation {proven.keyring.version}",
    }
    for released in proven.releases[-1:]:
        release = released.release
        until = f", until {release.expires_at}" if release.expires_at is not None else ""
        facts["release"] = f"{release.environment}, sequence {release.sequence}{until}"
    print_fields(facts)
    if not proven.is_pinned:
        for root in sorted(proven.keyring.roots):
            click.echo(
                f"Believed its own root key, {root}. Compare that with `gitd signing-key list` on "
                "the server, or give it with --root-key.",
                err=True,
            )


def _signer(proven: Proven) -> str:
    key_id = proven.provenance[-1].key_id
    return f"{key_id}, which was retired since" if proven.keyring.keys[key_id].retired else key_id


@contextmanager
def _as_exits(path: Path) -> Iterator[None]:
    """Say of the store's errors how the command ends."""
    from storage.errors import (
        ArtifactCorruptError,
        ArtifactMissingError,
        SignatureInvalidError,
        StorageError,
    )

    try:
        yield
    except SignatureInvalidError as error:
        raise NotProvenError("artifact.signature_invalid", f"{path}: {error}.") from error
    except ArtifactMissingError as error:
        raise NotProvenError("artifact.missing", f"{path}: {error}.") from error
    except ArtifactCorruptError as error:
        raise NotProvenError("artifact.corrupt", f"{path}: {error}.") from error
    except (StorageError, OSError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}") from error


@contextmanager
def _draft(target: Path) -> Iterator[BinaryIO]:
    """Write a file that has its name only when it is whole, and on the disk.

    The draft is nobody else's, also where another export is under way to the same name. Those that
    were killed leave theirs: it is nobody's, and goes.
    """
    draft = target.with_name(f"{target.name}.{token_hex(4)}{DRAFT_SUFFIX}")
    try:
        _remove_drafts(target)
        with draft.open("xb") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(target)
    except OSError as error:
        raise click.UsageError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _as_it_is(path: str, flags: int) -> int:
    """Open what has this name, no link's target, and wait for nobody at a pipe's other end."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _remove_drafts(target: Path) -> None:
    names = re.compile(rf"{re.escape(target.name)}\.[0-9a-f]{{8}}{re.escape(DRAFT_SUFFIX)}")
    for path in target.parent.iterdir():
        if not names.fullmatch(path.name):
            continue
        with suppress(OSError), open(path, "rb", opener=_as_it_is) as draft:
            if not stat.S_ISREG(os.fstat(draft.fileno()).st_mode):
                continue
            if time.time() - os.fstat(draft.fileno()).st_mtime > DRAFT_FRESH_S:
                fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
