"""mf audit verify: without any server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.audit_chain import BEFORE_ALL, digest_of

LOG = "/v1/audit-log"


@pytest.fixture
def lines() -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for number in range(1, 6):
        previous = made[-1]["digest"] if made else str(BEFORE_ALL)
        line = {"id": f"evt_{number}", "target": "site_1", "sequence": number, "previous": previous}
        made.append({**line, "digest": str(digest_of(line))})
    return made


def test_what_is_listed_as_json_is_an_export_that_verifies(mf, peer, lines, tmp_path: Path) -> None:
    peer.on("GET", LOG, peer.many(lines[::-1]))
    export = tmp_path / "audit.json"
    export.write_text(mf("audit", "--all", "--json").out)
    ran = mf("audit", "verify", str(export), "--head", str(lines[1]["digest"]))
    assert (ran.code, ran.err) == (0, "")
    assert f"{export}: 5 lines are as they were written." in ran.out
    assert f"The head is 5:{lines[-1]['digest']}." in ran.out
    head = f"5:{lines[-1]['digest']}"
    said = mf("audit", "verify", str(export), "--json").json
    assert said == {"lines": 5, "first": 1, "last": 5, "missing": 0, "head": head, "notes": []}


def test_export_that_was_changed_fails_and_says_where(mf, lines, tmp_path: Path) -> None:
    export = tmp_path / "audit.json"
    export.write_text(json.dumps([lines[0], {**lines[1], "target": "site_2"}, *lines[3:]]))
    ran = mf("audit", "verify", str(export))
    assert ran.code == 1
    assert "line 2 (evt_2) is not as it was written" in ran.err
    assert "lines 3 to 3 are missing" in ran.err
    export.write_text(json.dumps([lines[0], *lines[2:]]))
    assert mf("audit", "verify", str(export)).code == 1
    assert mf("audit", "verify", str(export), "--partial").code == 0
    noted = mf("audit", "verify", str(export), "--partial", "--head", "blake3:00", "--json")
    assert noted.code == 1
    assert json.loads(noted.err)["error"]["code"] == "audit_log.changed"


def test_head_from_before_the_first_line_that_is_kept_is_no_fault(mf, lines, tmp_path) -> None:
    """It cannot be told, and that is said. Each of the others has to be there."""
    export = tmp_path / "audit.json"
    export.write_text(json.dumps(lines[2:]))
    heads = [f"{line['sequence']}:{line['digest']}" for line in lines]
    options = [option for head in heads for option in ("--head", head)]
    ran = mf("audit", "verify", str(export), *options)
    note = f"the head {heads[0]} is older than its first line: it cannot be told"
    assert (ran.code, ran.out.count("note: ")) == (0, 1)
    assert f"note: {note}" in ran.out
    assert mf("audit", "verify", str(export), "--head", heads[0], "--json").json["notes"] == [note]
    bare = mf("audit", "verify", str(export), "--head", str(lines[0]["digest"]))
    assert (bare.code, "it begins with line 3" in bare.err) == (1, True)
    other = mf("audit", "verify", str(export), "--head", f"2:{lines[0]['digest']}")
    assert (other.code, "its line 2 is another" in other.err) == (1, True)
    export.write_text(json.dumps(lines[:4]))
    assert mf("audit", "verify", str(export), "--head", heads[4]).code == 1


def test_head_of_a_line_that_another_site_has_cannot_be_told(mf, lines, tmp_path) -> None:
    export = tmp_path / "site.json"
    export.write_text(json.dumps([lines[0], lines[2]]))
    for number in (2, 5):
        head = f"{number}:{lines[number - 1]['digest']}"
        ran = mf("audit", "verify", str(export), "--partial", "--head", head)
        assert (ran.code, f"the head {head} is of a line that is not in it" in ran.out) == (0, True)
    head = f"3:{lines[1]['digest']}"
    assert mf("audit", "verify", str(export), "--partial", "--head", head).code == 1


@pytest.mark.parametrize("data", ["", "{}", "[1]", '[{"id": "evt_1"}]', '[{"sequence": NaN}]'])
def test_file_that_is_no_export_is_wrong_usage(mf, tmp_path: Path, data: str) -> None:
    export = tmp_path / "audit.json"
    export.write_text(data)
    ran = mf("audit", "verify", str(export))
    assert (ran.code, "cannot be read" in ran.err) == (2, True)
    assert mf("audit", "verify", str(tmp_path / "absent")).code == 2
