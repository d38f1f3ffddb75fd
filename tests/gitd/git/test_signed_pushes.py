"""Signed pushes (t5534, t5541 "push --signed"): who signed is told to hooks, as git tells it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gitd.git.push_certificate import Certificate, NonceVerdict, judge_nonce, make_nonce

Git = Callable[..., Any]
NONE = "0" * 40
HOOK = """\
cat >/dev/null
test -z "$GIT_PUSH_CERT" || git cat-file blob "$GIT_PUSH_CERT" >certificate
env | grep ^GIT_PUSH_CERT | sort >told
"""


def set_hook(bare: Path, name: str, script: str = HOOK) -> None:
    path = bare / "hooks" / name
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)


def told(bare: Path) -> dict[str, str]:
    """What the hook was told, without `GIT_PUSH_CERT` before the names."""
    lines = (bare / "told").read_text().splitlines()
    return dict(line.removeprefix("GIT_PUSH_CERT").split("=", 1) for line in lines)


@pytest.fixture
def signed(bare: Path, git: Git) -> Path:
    """A repository that asks for signed pushes and remembers what its hook is told."""
    git("config", "receive.certNonceSeed", "sekrit", cwd=bare)
    git("config", "receive.certNonceSlop", "1000", cwd=bare)
    set_hook(bare, "post-receive")
    return bare


@pytest.fixture
def ssh_key(tmp_path: Path, work: Path, git: Git) -> Path:
    """An SSH key that the clone signs with; returns its public half."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True
    )
    git("config", "gpg.format", "ssh", cwd=work)
    git("config", "user.signingKey", tmp_path / "key", cwd=work)
    return tmp_path / "key.pub"


def allow(bare: Path, key: Path, git: Git) -> None:
    (bare / "signers").write_text(f"ada@example.org {key.read_text()}")
    git("config", "gpg.ssh.allowedSignersFile", bare / "signers", cwd=bare)


def test_a_push_signed_by_ssh_is_told_to_the_hook(
    signed: Path, work: Path, ssh_key: Path, git: Git, head: Git
) -> None:
    allow(signed, ssh_key, git)
    git("push", "--signed", "origin", "main:x", cwd=work)
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", ssh_key], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    found = told(signed)
    assert (found["_STATUS"], found["_SIGNER"]) == ("G", "ada@example.org")
    assert (found["_KEY"], found["_NONCE_STATUS"]) == (fingerprint, "OK")
    certificate = (signed / "certificate").read_text()
    assert f"\nnonce {found['_NONCE']}\n" in certificate
    assert f"\n{NONE} {head(work)} refs/heads/x\n" in certificate
    assert head(signed, "x") == head(work)
    git("fsck", "--full", "--strict", cwd=signed)


def test_a_good_signature_of_nobody_known_is_unknown(
    signed: Path, work: Path, ssh_key: Path, git: Git, tmp_path: Path
) -> None:
    allow(signed, ssh_key, git)
    (signed / "signers").write_text("")
    git("push", "--signed", "origin", "main:x", cwd=work)
    found = told(signed)
    assert (found["_STATUS"], found["_SIGNER"]) == ("U", "")
    assert found["_KEY"].startswith("SHA256:")


@pytest.mark.parametrize("program", ["gpg.ssh.program", "gpg.ssh.allowedSignersFile"])
def test_without_what_it_takes_nothing_is_said_about_the_signer(
    signed: Path, work: Path, ssh_key: Path, git: Git, program: str
) -> None:
    if program == "gpg.ssh.program":
        allow(signed, ssh_key, git)
        git("config", program, "/nonexistent", cwd=signed)
    git("push", "--signed", "origin", "main:x", cwd=work)
    assert (told(signed)["_STATUS"], told(signed)["_KEY"]) == ("E", "")


@pytest.fixture
def gnupg(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key ring with one key; its folder has a short name, as its agent's socket needs."""
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        monkeypatch.setenv("GNUPGHOME", home)
        quick = ["gpg", "--batch", "-q", "--passphrase", "", "--quick-gen-key"]
        subprocess.run([*quick, "Ada <ada@example.org>", "ed25519"], check=True,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        yield
        subprocess.run(["gpgconf", "--kill", "all"], check=True)


def test_a_push_signed_by_gnupg_is_told_to_the_hook(
    gnupg: None, launch: Any, tmp_path: Path, git: Git, commit: Git
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    server = launch(root)
    bare = server.create("a.git", receive__certNonceSeed="x", receive__certNonceSlop="1000")
    set_hook(bare, "post-receive")
    work = tmp_path / "w"
    git("init", "-q", "-b", "main", work, cwd=tmp_path)
    commit(work, "one")
    git("push", "--signed", server.url_of(bare), "main", cwd=work)
    listed = subprocess.run(
        ["gpg", "--list-keys", "--with-colons"], check=True, capture_output=True, text=True
    ).stdout
    key = next(line for line in listed.splitlines() if line.startswith("pub")).split(":")[4]
    found = told(bare)
    assert (found["_STATUS"], found["_SIGNER"]) == ("G", "Ada <ada@example.org>")
    assert (found["_KEY"], found["_NONCE_STATUS"]) == (key, "OK")
    assert (bare / "certificate").read_text().endswith("-----END PGP SIGNATURE-----\n")


def test_without_a_seed_no_push_can_be_signed(
    bare: Path, work: Path, ssh_key: Path, git: Git
) -> None:
    done = git("push", "--signed", "origin", "main:x", cwd=work, check=False)
    assert "the receiving end does not support --signed push" in done.err


def test_a_push_that_a_hook_declines_leaves_no_certificate(
    signed: Path, work: Path, ssh_key: Path, git: Git
) -> None:
    set_hook(signed, "pre-receive", HOOK + "exit 1\n")
    done = git("push", "--signed", "origin", "main:x", cwd=work, check=False)
    assert "pre-receive hook declined" in done.err
    oid = told(signed)[""]
    assert (signed / "certificate").exists()  # the hook could read it, in quarantine
    assert git("cat-file", "-e", oid, cwd=signed, check=False).status != 0
    assert not list((signed / "objects").rglob("tmp_*"))


def test_a_signed_deletion_has_its_certificate_too(
    signed: Path, work: Path, ssh_key: Path, git: Git
) -> None:
    allow(signed, ssh_key, git)
    git("push", "-q", "origin", "main:x", cwd=work)
    (signed / "certificate").unlink(missing_ok=True)
    git("push", "--signed", "origin", ":x", cwd=work)
    assert told(signed)["_STATUS"] == "G"
    git("cat-file", "-e", told(signed)[""], cwd=signed)


def certificate_of(*lines: str, head: str = "pushee x\nnonce 1-2\n") -> bytes:
    text = f"certificate version 0.1\npusher A <a@b> 1 +0000\n{head}\n"
    return (text + "".join(f"{line}\n" for line in lines)).encode()


def push_body(raw: Any, content: bytes, options: list[str] | None, *more: str) -> bytes:
    caps = "report-status" + (" push-options" if options is not None else "")
    body = raw.pkt(f"push-cert\0{caps}\n")
    body += b"".join(raw.pkt(line) for line in content.splitlines(keepends=True))
    body += raw.pkt("push-cert-end\n") + b"".join(raw.pkt(line) for line in more) + b"0000"
    if options is not None:
        body += b"".join(raw.pkt(option) for option in options) + b"0000"
    return body


@pytest.mark.parametrize("options", [["one", "2"], ["one"], [], ["one", "two", "three"]])
def test_push_options_are_those_that_were_signed(
    server: Any, signed: Path, work: Path, raw: Any, git: Git, head: Git, options: list[str]
) -> None:
    git("config", "receive.advertisePushOptions", "true", cwd=signed)
    content = certificate_of(f"{head(work)} {NONE} refs/heads/main",
                             head="push-option one\npush-option two\n")  # fmt: skip
    got = server.post(signed, "git-receive-pack", push_body(raw, content, options))
    answer = raw.parse_push_answer(got, has_bands=False)
    assert answer.refs == {"refs/heads/main": "inconsistent push options"}
    got = server.post(signed, "git-receive-pack", push_body(raw, content, ["one", "two"]))
    answer = raw.parse_push_answer(got, has_bands=False)
    assert answer.refs == {"refs/heads/main": "deletion of the current branch prohibited"}


def test_malformed_certificates_are_refused(
    server: Any, signed: Path, work: Path, raw: Any, head: Git
) -> None:
    command = f"{head(work)} {NONE} refs/heads/main"
    for content, more, says in (
        (b"no head\n", (), "malformed push certificate"),
        (certificate_of("garbage"), (), "expected old/new/ref"),
        (certificate_of(command), (command,), "got both push certificate and unsigned commands"),
    ):
        got = server.post(signed, "git-receive-pack", push_body(raw, content, None, *more))
        assert got.status_code == 400
        assert says in got.text
    got = server.post(signed, "git-receive-pack", raw.pkt("push-cert\0x\n") + b"0000")
    assert got.status_code == 400
    assert "has no end" in got.text


# the nonce


@pytest.mark.parametrize(
    ("age_s", "slop_s_max", "status"),
    [(0, 0, "OK"), (5, 5, "OK"), (-5, 5, "OK"), (6, 5, "SLOP"), (-6, 5, "SLOP"), (1, 0, "SLOP")],
)
def test_a_nonce_ages(age_s: int, slop_s_max: int, status: str) -> None:
    nonce = make_nonce("seed", Path("/r"), 1_000)
    certificate = Certificate.parse(certificate_of(head=f"nonce {nonce}\n"))
    found = judge_nonce(
        certificate,
        seed="seed",
        repository=Path("/r"),
        now_s=1_000 + age_s,
        slop_s_max=slop_s_max,
    )
    is_old = status == "SLOP"
    assert found.status == status
    assert found.slop_s == (age_s if is_old else None)
    assert (found.nonce == nonce) == (not is_old)


@pytest.mark.parametrize(
    "nonce",
    [make_nonce("other", Path("/r"), 1_000), make_nonce("seed", Path("/other"), 1_000), "1000-",
     "1000", "x", "", "1000-\xff", "9" * 19 + "-1", make_nonce("seed", Path("/r"), 1_000)[:-1]],
)  # fmt: skip
def test_a_foreign_nonce_is_bad(nonce: str) -> None:
    certificate = Certificate.parse(certificate_of(head=f"nonce {nonce}\n"))
    found = judge_nonce(
        certificate, seed="seed", repository=Path("/r"), now_s=1_000, slop_s_max=9_999
    )
    assert found == NonceVerdict(make_nonce("seed", Path("/r"), 1_000), "BAD")


def test_a_certificate_may_lack_its_nonce() -> None:
    certificate = Certificate.parse(certificate_of(f"{NONE} {NONE} nonce 1-1", head="pushee x\n"))
    found = judge_nonce(certificate, seed="seed", repository=Path("/r"), now_s=1, slop_s_max=0)
    assert found.status == "MISSING"


def test_the_last_signature_is_the_signature() -> None:
    signature = "-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n"
    content = certificate_of("a b c").decode() + "-----BEGIN SSH SIGNATURE-----\n" + signature
    found = Certificate.parse(content.encode())
    assert found.signature == signature.encode()
    assert found.payload + found.signature == found.content
    assert found.commands[:2] == [b"a b c", b"-----BEGIN SSH SIGNATURE-----"]
