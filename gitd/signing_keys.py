"""`gitd signing-key`: which keys vouch for artifacts and releases, and how that changes.

Each works beside a running server, which takes up the new key and the new trust by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gitd.beside import (
    beside,
    data_option,
    fail,
    json_option,
    note,
    note_keys,
    open_records,
    print_json,
)
from gitd.command_groups import Group

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from gitd.layout import DataFolder
    from storage.custody import Custody
    from storage.model import Attestation
    from storage.reader import StoreReader
    from storage.records.vouching import Affected
    from storage.resign import Resigned
    from storage.signing import SigningKey
    from storage.trust import Keyring, TrustedKey

SHOWN_COUNT_MAX = 20  # of what a command lists for people; --json has all


def root_key_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--root-key",
        "root",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The file of the root key, where it is kept elsewhere.",
    )(command)


@click.group("signing-key", cls=Group)
def signing_key() -> None:
    """Keys that sign artifacts and releases, and which of them are trusted."""


@signing_key.command("list")
@data_option
@json_option
def list_keys(data: Path, *, as_json: bool) -> None:
    """Show the keys, what each signed, and the root key that trust begins with."""
    from storage.records import attestations

    folder = beside(data)
    with open_records(folder) as records:
        uses = attestations.uses(records.reader())
    keyring = _reader(folder, _custody(folder)).keyring()
    keys = [
        {
            "key_id": name,
            "state": key.state,
            "roles": key.roles,
            "builders": key.builders,
            "sites": key.sites,
            "reason": key.reason,
            "statements": uses[name].count if name in uses else 0,
            "first_sequence": uses[name].first if name in uses else None,
            "last_sequence": uses[name].last if name in uses else None,
        }
        for name, key in sorted(keyring.keys.items(), key=lambda item: _rank(item[1]))
    ]
    if as_json:
        roots = sorted(keyring.roots)
        print_json({"generation": keyring.version, "root_keys": roots, "keys": keys})
        return
    for name in sorted(keyring.roots):
        click.echo(f"{name}  root of trust, generation {keyring.version}")
    for item in keys:
        signed = "signed nothing"
        if item["statements"]:
            signed = f"statements #{item['first_sequence']} to #{item['last_sequence']}"
        reason = f"  ({item['reason']})" if item["reason"] else ""
        click.echo(f"{item['key_id']}  {item['state']}  {signed}{reason}")


@signing_key.command()
@data_option
@root_key_option
@json_option
def rotate(data: Path, root: Path | None, *, as_json: bool) -> None:
    """Sign with a new key from now on. What the old one signed stays valid."""
    root_key = _load(root)
    folder = beside(data)
    custody = _custody(folder)
    reader = _reader(folder, custody)
    with open_records(folder) as records:
        records.write(lambda db: note_keys(db, reader.keyring()))  # what was missed before
        rotated = custody.rotate(reader.layout.trust, root=root_key)
        # First said and then noted: when that fails, the next start of the server does it.
        if as_json:
            print_json({"key_id": rotated.key_id, "generation": rotated.keyring.version})
        else:
            click.echo(
                f"{rotated.key_id} signs from now on; a running server has taken it up already."
            )
            click.echo("What the key before signed stays valid. Its private half is gone.")
        records.write(lambda db: note_keys(db, rotated.keyring))


@signing_key.command()
@click.argument("key_id")
@data_option
@click.option("--reason", required=True, help="Why, for those who look at it later.")
@click.option(
    "--since",
    type=click.IntRange(1),
    metavar="SEQUENCE",
    help="The first statement not to be trusted: those before are signed again.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be affected.")
@root_key_option
@json_option
def revoke(
    *,
    key_id: str,
    data: Path,
    reason: str,
    since: int | None,
    dry_run: bool,
    root: Path | None,
    as_json: bool,
) -> None:
    """Trust nothing any more that a key ever signed, from this moment on."""
    from storage.model import Action
    from storage.records import attestations, vouching
    from storage.resign import Resigned, resign

    root_key = _load(root)
    folder = beside(data)
    custody = _custody(folder)
    reader = _reader(folder, custody)
    name = _known(reader.keyring(), key_id)
    with open_records(folder) as records:
        if not dry_run:
            trust = reader.layout.trust
            records.write(lambda db: note_keys(db, reader.keyring()))  # what was missed before
            if reader.keyring().keys[name].is_active:
                rotated = custody.rotate(trust, root=root_key).keyring
                records.write(lambda db: note_keys(db, rotated))
            kept = Resigned(0, ())
            if since is not None:
                before = attestations.signed_by(records.reader(), name, before=since)
                kept = resign(records, reader, custody, before)
            keyring = custody.revoke(trust, name, reason=reason, root=root_key)

            def write(db: sqlite3.Connection) -> None:
                attestations.revoke(db, keyring.revoked)
                if kept.count:
                    note(db, Action.STATEMENTS_RESIGNED, name)
                note_keys(db, keyring)

            records.write(write)
        lost = attestations.signed_by(records.reader(), name)
        if dry_run:
            lost = [made_by for made_by in lost if since is None or made_by.sequence >= since]
        affected = vouching.affected(records.reader(), key_id=name, since=since)
    _tell_revoked(name, lost, affected, None if dry_run else kept, as_json=as_json)
    if not dry_run and kept.failures:
        raise SystemExit(1)


@signing_key.command()
@click.argument("key_id")
@data_option
@click.option("--before", type=click.IntRange(1), metavar="SEQUENCE", help="Those before this one.")
@click.option("--artifact", "artifact_ids", multiple=True, help="Those about this artifact.")
@json_option
def resign(
    key_id: str,
    data: Path,
    before: int | None,
    artifact_ids: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Vouch again, with the key that signs now, for what another key signed."""
    from storage.model import Action
    from storage.records import attestations
    from storage.resign import resign as sign_again

    if before is None and not artifact_ids:
        raise click.UsageError("Say what to vouch for: --before SEQUENCE or --artifact ID.")
    folder = beside(data)
    custody = _custody(folder)
    reader = _reader(folder, custody)
    name = _known(reader.keyring(), key_id)
    if name == custody.signing_key().key_id:
        fail(f"{name} is the key that signs now")
    with open_records(folder) as records:
        chosen = [
            made_by
            for made_by in attestations.signed_by(records.reader(), name, before=before)
            if not artifact_ids or made_by.artifact_id in artifact_ids
        ]
        done = sign_again(records, reader, custody, chosen)
        if done.count:
            records.write(lambda db: note(db, Action.STATEMENTS_RESIGNED, name))
    if as_json:
        print_json({"signed_again": done.count, "failures": done.failures})
    else:
        _tell_resigned(done)
    if done.failures:
        raise SystemExit(1)


# -- pieces ---------------------------------------------------------------------------------------


def _load(root: Path | None) -> SigningKey | None:
    """Read the root key that was named: as who started this, before `beside` gives rights up."""
    from storage.signing import SigningKey

    return SigningKey.load(root) if root is not None else None


def _custody(folder: DataFolder) -> Custody:
    from storage.custody import Custody

    return Custody(folder.keys)


def _reader(folder: DataFolder, custody: Custody) -> StoreReader:
    from storage.reader import StoreReader

    return StoreReader(folder.store, root_key_ids=custody.root_key_ids())


def _known(keyring: Keyring, key_id: str) -> str:
    """Return the whole id of a key that is named by the beginning of its id."""
    wanted = key_id if key_id.startswith("ed25519:") else f"ed25519:{key_id}"
    found = [name for name in keyring.keys if name.startswith(wanted)]
    if len(found) != 1:
        what = "there is no such key" if not found else "several keys begin like that"
        fail(f"{key_id}: {what}; gitd signing-key list shows them")
    return found[0]


def _rank(key: TrustedKey) -> tuple[str, str]:
    return key.state, key.key_id


def _tell_revoked(
    name: str,
    lost: Sequence[Attestation],
    affected: Sequence[Affected],
    kept: Resigned | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "key_id": name,
                "revoked": kept is not None,
                "signed_again": kept.count if kept else 0,
                "failures": kept.failures if kept else (),
                "statements": [
                    {
                        "sequence": made_by.sequence,
                        "artifact_id": made_by.artifact_id,
                        "site_id": made_by.site_id,
                        "build_id": made_by.build_id,
                    }
                    for made_by in lost
                ],
                "environments": affected,
            }
        )
        return
    click.echo(f"{name} is revoked." if kept else f"Were {name} revoked:")
    if kept and kept.count:
        _tell_resigned(kept)
    _tell_lost(lost)
    _tell_affected(name, affected)


def _tell_lost(lost: Sequence[Attestation]) -> None:
    if not lost:
        click.echo("No artifact rests on it.")
        return
    does = "proves" if len(lost) == 1 else "prove"
    click.echo(f"{len(lost)} of its statements {does} nothing any more:")
    for made_by in lost[:SHOWN_COUNT_MAX]:
        click.echo(f"  #{made_by.sequence}  {made_by.artifact_id}  of {made_by.build_id}")
    if len(lost) > SHOWN_COUNT_MAX:
        click.echo(f"  and {len(lost) - SHOWN_COUNT_MAX} more (--json lists all)")


def _tell_affected(name: str, affected: Sequence[Affected]) -> None:
    if not affected:
        return
    click.echo("What these environments serve has no other proof. They serve on until the site")
    click.echo("host starts again, and then nothing; such an artifact is not rolled again:")
    for item in affected:
        click.echo(f"  {item.environment} of {item.site}: {item.artifact_id}")
    click.echo("Build and deploy them again:")
    for item in affected:
        click.echo(f"  mf build --site {item.site} --env {item.environment} --deploy --wait")
    click.echo("or, for artifacts that you know to be sound:")
    click.echo(f"  gitd signing-key resign {name} --artifact ID --data DIR")


def _tell_resigned(done: Resigned) -> None:
    from storage.counted import counted

    were = counted(done.count, "statement was", "statements were")
    click.echo(f"{were} signed again, by the key that signs now.")
    for failure in done.failures:
        click.echo(f"NOT SIGNED: {failure}")
