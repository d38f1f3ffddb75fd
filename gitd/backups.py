"""`gitd backup` and `gitd restore`: a server's data, copied beside its running and put back."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from gitd.beside import (
    become_owner,
    beside,
    data_option,
    fail,
    folder_of,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from gitd.layout import DataFolder
    from storage.backup.destination import Destination
    from storage.backup.manifest import Facts
    from storage.backup.progress import Progress
    from storage.backup.restore import Restored
    from storage.backup.take import Taken
    from storage.backup.verify import Verified

SHOW_EVERY_S = 0.2
DAMAGE_SHOWN_MAX = 10
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("dest", type=_FOLDER)
@click.option("--data", type=_FOLDER, envvar="GITD_DATA", help="The data folder of the server.")
@click.option("--with-keys", is_flag=True, help="Back up the private keys too.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Remove all but the newest N.")
@click.option("--list", "lists", is_flag=True, help="Show the backups that there are.")
@click.option("--verify", "verifies", is_flag=True, help="Check every byte of the backups.")
@click.option("--deep", is_flag=True, help="With --verify: every object of the repositories too.")
@click.option("--at", metavar="NAME", help="With --verify: this backup alone.")
@json_option
def backup(  # noqa: PLR0913 - one parameter per option
    *,
    dest: Path,
    data: Path | None,
    with_keys: bool,
    keep: int | None,
    lists: bool,
    verifies: bool,
    deep: bool,
    at: str | None,
    as_json: bool,
) -> None:
    """Back up a server into DEST, beside its running. What is there already is not copied again."""
    from storage.backup.destination import Destination

    destination = Destination(dest.absolute())
    if lists and verifies:
        raise click.UsageError("--list and --verify are two things: one at a time")
    if lists:
        _list(destination, as_json=as_json)
    elif verifies:
        _verify(destination, at, is_deep=deep, as_json=as_json)
    elif deep or at is not None:
        raise click.UsageError("--deep and --at go with --verify")
    elif data is None:
        raise click.UsageError("Missing option '--data': the data folder of the server")
    else:
        _take(data, destination, with_keys=with_keys, keep=keep, as_json=as_json)


@click.command()
@click.argument("src", type=_FOLDER)
@data_option
@click.option("--at", metavar="NAME", help="This backup, or the last before this time.")
@click.option("--digest", metavar="DIGEST", help="Only if this is the digest of the backup.")
@click.option("--keys", type=_FOLDER, help="A folder with the private keys, kept elsewhere.")
@click.option("--new-keys", is_flag=True, help="Make a signing key where there is none.")
@click.option("--without-variables", is_flag=True, help="Forget sealed values: their key is lost.")
@json_option
def restore(
    *,
    src: Path,
    data: Path,
    at: str | None,
    digest: str | None,
    keys: Path | None,
    new_keys: bool,
    without_variables: bool,
    as_json: bool,
) -> None:
    """Put a backup in SRC into a data folder that is empty. Run again, it goes on."""
    from storage.backup import keys as key_files
    from storage.backup.destination import Destination
    from storage.backup.places import Places
    from storage.backup.restore import restore as put_back

    folder, destination = folder_of(data), Destination(src.absolute())
    _require_apart(folder.root, destination.root)
    # As who started this, before rights are given up.
    files = key_files.read_keys(keys) if keys is not None else {}
    plan = key_files.KeyPlan(files, makes_new=new_keys, without_variables=without_variables)
    become_owner(folder)
    with _Screen(is_silent=as_json) as screen:
        restored = put_back(
            destination, Places(folder.root), plan, at=at, expected=digest, tell=screen.tell
        )
    folder.prepare()
    if as_json:
        print_json(_restored_as_json(restored))
    else:
        _say_restored(restored, folder.root)


# -- taking ---------------------------------------------------------------------------------------


def _take(
    data: Path, destination: Destination, *, with_keys: bool, keep: int | None, as_json: bool
) -> None:
    from storage.backup.places import Places
    from storage.backup.take import take

    began = time.monotonic()
    _require_apart(folder_of(data).root, destination.root)
    folder = beside(data)
    with _Screen(is_silent=as_json) as screen:
        taken = take(
            Places(folder.root),
            destination,
            with_keys=with_keys,
            keep_count=keep,
            tell=screen.tell,
        )
    if not taken.found:
        _note(folder, taken)
    if as_json:
        print_json(_taken_as_json(taken))
    else:
        _say_taken(taken, folder.root, time.monotonic() - began)
    if taken.found:
        fail(_in_words(taken))


def _in_words(taken: Taken) -> str:
    shown = "; ".join(taken.found[:DAMAGE_SHOWN_MAX])
    count = len(taken.found) - DAMAGE_SHOWN_MAX
    more = f"; and {count} more" if count > 0 else ""
    return (
        f"the backup {taken.facts.name} was made, and is NOT COMPLETE: this is damaged and not in"
        f" it: {shown}{more}. Run gitd check --repair"
    )


def _note(folder: DataFolder, taken: Taken) -> None:
    """Let the server's metrics tell of it. It is taken, whether or not that can be written down."""
    from gitd.backup_note import note_backup
    from storage.errors import StorageError

    try:
        note_backup(folder, taken.facts.name, taken.facts.made_at)
    except StorageError as error:
        click.echo(f"note: /metrics does not tell of this backup: {error}", err=True)


def _require_apart(data: Path, backups: Path) -> None:
    """A copy beside what it is a copy of goes with it; and one would hold the other."""
    inner, outer = backups.resolve(), data.resolve()
    if inner == outer or outer in inner.parents:
        fail(f"{backups} is in the data folder {data}: what destroys that takes the backups along")
    if inner in outer.parents:
        fail(f"the data folder {data} is in {backups}: keep backups in a folder of their own")


def _say_taken(taken: Taken, root: Path, took_s: float) -> None:
    from storage.room import size_in_words

    facts = taken.facts
    click.echo(f"backup {facts.name} of {root}")
    click.echo(_what_is_in(facts))
    new, whole = size_in_words(facts.new_bytes), size_in_words(facts.size_bytes)
    click.echo(f"{new:>8} new of {whole}, in {took_s:.1f} s")
    for name in taken.pruned:
        click.echo(f"removed  {name}")
    if taken.freed_bytes:
        click.echo(f"{size_in_words(taken.freed_bytes):>8} freed")
    for sentence in (*taken.warnings, *_left_out(facts)):
        click.echo(f"note: {sentence}")
    if facts.audit_head is not None:
        click.echo(f"the audit log's head is {facts.audit_head}")
    click.echo(f"digest {taken.digest}")


def _what_is_in(facts: Facts) -> str:
    from storage.counted import counted

    sites, artifacts = counted(facts.sites, "site", width=8), counted(facts.artifacts, "artifact")
    return f"{sites}, {artifacts}, {counted(facts.files, 'file')}"


def _taken_as_json(taken: Taken) -> dict[str, object]:
    return {
        **_facts_as_json(taken.facts, str(taken.digest)),
        "pruned": taken.pruned,
        "freed_bytes": taken.freed_bytes,
        "found_damaged": taken.found,
        "notes": (*taken.warnings, *_left_out(taken.facts)),
    }


def _left_out(facts: Facts) -> list[str]:
    """What is not in a backup, and what that means when it is restored."""
    found = []
    if facts.signing_key == "included":
        found.append(
            "private keys are in it: whoever reads it can sign as this server, and open its"
            " secrets. Keep it as you would keep the keys."
        )
    elif facts.signing_key == "left_out":
        found.append(
            "private keys are not in it (--with-keys). A restore wants those that you keep"
            " elsewhere (--keys DIR), or makes a new one (--new-keys)."
        )
    else:
        found.append(
            "the signing key is not in it: the service manager hands it over, and must do so on"
            " the restored host, or gitd restore --new-keys makes another."
        )
    if facts.root_key == "elsewhere":
        found.append("the root key is not in it: it is kept elsewhere. Know where.")
    if facts.variables_key in ("left_out", "elsewhere"):
        found.append(
            "variables.key is not in it: without it sealed values of variables and secrets"
            f" ({facts.sealed}) cannot be opened again, and have to be set anew."
        )
    found.append("what web processes keep in /data is not in it: see docs/backup.md.")
    return found


def _facts_as_json(facts: Facts, digest: str | None) -> dict[str, object]:
    import msgspec

    from hooks.clock import rfc3339

    plain = {**msgspec.structs.asdict(facts), "made_at": rfc3339(facts.made_at)}
    return {**plain, "digest": digest}


# -- looking --------------------------------------------------------------------------------------


def _list(destination: Destination, *, as_json: bool) -> None:
    from hooks.clock import rfc3339
    from storage.backup.verify import listed
    from storage.counted import counted
    from storage.room import size_in_words

    found = listed(destination)
    if as_json:
        print_json([_facts_as_json(facts, None) for facts in found])
        return
    for facts in found:
        keys = "with keys" if facts.signing_key == "included" else "without keys"
        new, whole = size_in_words(facts.new_bytes), size_in_words(facts.size_bytes)
        click.echo(
            f"{facts.name}  {rfc3339(facts.made_at)}  {counted(facts.sites, 'site')}, "
            f"{counted(facts.artifacts, 'artifact')}, {whole} ({new} new), {keys}"
            + (f", {counted(facts.damaged, 'damaged part')} left out" if facts.damaged else "")
        )
    if not found:
        click.echo("There is no backup.")


def _verify(destination: Destination, at: str | None, *, is_deep: bool, as_json: bool) -> None:
    from storage.backup.verify import verify

    with _Screen(is_silent=as_json) as screen:
        found = verify(destination, at=at, is_deep=is_deep, tell=screen.tell)
    is_sound = not any(item.faults for item in found)
    if as_json:
        print_json({"ok": is_sound, "backups": [_verified_as_json(item) for item in found]})
    else:
        for item in found:
            _say_verified(item)
        if not found:
            click.echo("There is no backup.")
    if not is_sound:
        sys.exit(1)


def _verified_as_json(item: Verified) -> dict[str, object]:
    facts = _facts_as_json(item.facts, str(item.digest)) if item.facts else {"name": item.name}
    return {**facts, "faults": item.faults}


def _say_verified(item: Verified) -> None:
    from storage.counted import counted

    for fault in item.faults:
        click.echo(f"WRONG: backup {item.name}: {fault}")
    if item.facts is not None and not item.faults:
        click.echo(f"{item.name} is whole: {counted(item.facts.files, 'file')}, {item.digest}")


# -- restoring ------------------------------------------------------------------------------------


def _restored_as_json(restored: Restored) -> dict[str, object]:
    return {
        **_facts_as_json(restored.facts, str(restored.digest)),
        "interrupted_jobs": restored.interrupted,
        "forgotten_variables": restored.forgotten_variables,
        "webhooks_off": restored.webhooks_off,
        "new_signing_key": restored.signing_key_id,
        "is_trust_new": restored.is_trust_new,
    }


def _say_restored(restored: Restored, root: Path) -> None:
    from storage.counted import counted

    facts = restored.facts
    click.echo(f"{root} is as the backup {facts.name} was, every byte checked:")
    click.echo(_what_is_in(facts))
    if restored.interrupted:
        one, many = "job ran at that moment, and counts", "jobs ran at that moment, and count"
        click.echo(f"{counted(restored.interrupted, one, many, width=8)} as failed")
    if restored.forgotten_variables:
        one, many = "value of a variable or secret is", "values of variables and secrets are"
        click.echo(f"{counted(restored.forgotten_variables, one, many, width=8)} gone: set again")
    if restored.webhooks_off:
        one, many = "webhook is off, and tells", "webhooks are off, and tell"
        click.echo(
            f"{counted(restored.webhooks_off, one, many, width=8)} nothing of before; where this"
            " is no copy: mf webhooks set ID --enabled"
        )
    if restored.signing_key_id:
        click.echo(f"A new key signs from now on: {restored.signing_key_id}")
    if restored.is_trust_new:
        click.echo("Trust begins with a new root key: gitd signing-key list shows it. Hosts that")
        click.echo(
            "pin the root key (gitd host --root-key), and whoever verifies exports, need it."
        )
    elif restored.signing_key_id is None and facts.signing_key == "elsewhere":
        click.echo("The signing key has to be handed over by the service manager, as it was.")
    click.echo(f"Start the server: gitd serve --data {root}")


# -- progress -------------------------------------------------------------------------------------


class _Screen:
    """One line on a terminal that says how far it is; nothing where nobody watches."""

    def __init__(self, *, is_silent: bool) -> None:
        self._is_shown = not is_silent and sys.stderr.isatty()
        self._shown_at = 0.0
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            click.echo("\r" + " " * self._width + "\r", nl=False, err=True)

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self._is_shown or now - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = now
        share = f" {100 * progress.done // progress.total} %" if progress.total else ""
        text = f"{progress.what}{share}"
        click.echo("\r" + text.ljust(self._width), nl=False, err=True)
        self._width = max(self._width, len(text))
