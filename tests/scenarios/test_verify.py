"""docs/verify.md, followed to the letter, on an archive of a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.own_server

PAGE = Path(__file__).parents[2] / "docs" / "verify.md"
TOOLS = ("b3sum", "openssl", "sha256sum")
UNPACKS = re.compile(r"^(mkdir|tar) .*\n", re.MULTILINE)
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def released(server):
    """A server that serves a release, and the id of its artifact."""
    work = server.work()
    work.use("static")
    work.push()
    found = json.loads(
        server.mf("releases", "--site", "acme-store", "--env", "production", "--json").stdout
    )
    return found[0]["artifact_id"]


def served_folder(server) -> Path:
    """The one environment's that serves something."""
    return next(server.data.glob("host/environments/*/current"))


@pytest.fixture
def follow(server, released, tmp_path):
    """Run blocks of the page, one after the other, in one shell."""
    environment = served_folder(server).parent

    def run(blocks: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", "\n".join(blocks)],
            cwd=tmp_path,
            env={
                **server.environ,
                "GITD_DATA": str(server.data),
                "ARTIFACT": released,
                "RELEASES": str(environment),
            },
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)),
    reason=f"needs {', '.join(TOOLS)} (Debian: apt install b3sum)",
)
def test_page_is_right_about_an_artifact_and_about_one_that_was_changed(
    follow, released, tmp_path
) -> None:
    done = follow(BLOCKS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is what it says" in done.stdout
    assert re.search(r'"gitCommit":"[0-9a-f]{40}"', done.stdout)
    assert '"sequence":1' in done.stdout
    unpacked = tmp_path / "acme-store" / released
    blob = next(path for path in (unpacked / "blobs").rglob("*") if path.is_file())
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes() + b"!")
    # Again, on what is unpacked already.
    by_hand = [block for block in BLOCKS if "mf artifacts" not in block]
    again = follow([UNPACKS.sub("", block) for block in by_hand])
    assert again.returncode != 0
    assert "WRONG: blobs/" in again.stderr


def test_archive_is_verified_without_the_server(server, released, tmp_path) -> None:
    archive = tmp_path / "acme-store.tar"
    place = ("--site", "acme-store", "--env", "production")
    server.mf("artifacts", "export", released, *place, "-o", str(archive))
    root = json.loads(server.gitd("signing-key", "list", "--json"))["root_keys"][0]
    server.gitd("signing-key", "rotate")
    server.stop()
    said = json.loads(
        server.mf("artifacts", "verify", str(archive), "--root-key", root, "--json").stdout
    )
    assert (said["artifact_id"], said["root_keys_pinned"]) == (released, True)
    assert said["provenance"][0]["site"] == "acme-store"
    assert said["provenance"][0]["toolchain"]["git"]
    assert [release["sequence"] for release in said["releases"]] == [1]
    refused = server.mf(
        "artifacts", "verify", str(archive), "--root-key", f"ed25519:{'0' * 64}", check=False
    )
    assert refused.returncode == 1
    assert "other root keys" in refused.stderr


def test_served_folder_is_verified_where_it_is_served(server, released, tmp_path) -> None:
    current = served_folder(server)
    said = server.mf("artifacts", "verify", str(current)).stdout
    assert released in said
    assert re.search(r"release +production, sequence 1", said)
    page = next(path for path in current.resolve().rglob("*.html"))
    page.chmod(0o644)
    page.write_bytes(page.read_bytes() + b"!")
    page.chmod(0o444)
    refused = server.mf("artifacts", "verify", str(current), "--json", check=False)
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["code"] == "artifact.corrupt"
