"""What the parts of a server are given of its settings."""

from __future__ import annotations

from click.testing import CliRunner
from structlog.testing import capture_logs

from gitd.__main__ import cli
from gitd.config import Config, RetentionConfig
from gitd.control import Control
from gitd.layout import DataFolder
from hooks import log_retention
from storage.ids import new_id
from storage.model import SYSTEM, Action, AuditEntry
from storage.records import audit_log
from storage.signing import SigningKey


def made_at(at: int) -> AuditEntry:
    return AuditEntry(
        id=new_id("evt"),
        created_at=at,
        actor=SYSTEM,
        action=Action.SITE_CREATED,
        target="site_1",
        site_id=None,
        env_id=None,
        address=None,
        request_id=None,
    )


def test_lines_of_the_audit_log_go_at_the_age_that_is_set(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(log_retention, "GRACE_S", 0.0)
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    for age_s, gone in ((0, 0), (7200, 0), (3600, 1)):
        control = Control(folder, Config(retention=RetentionConfig(audit_age_s_max=age_s)), None)
        if not age_s:
            entry = made_at(control.jobs.clock() - 5400 * 1000)
            control.records.write(lambda db, entry=entry: audit_log.add(db, entry))
        assert control.log_retention.forget() == gone
        control.close()


def test_line_of_the_future_that_holds_up_the_others_is_said(tmp_path, monkeypatch) -> None:
    """In the server's log, and by `gitd check`, which is no failure by that."""
    monkeypatch.setattr(log_retention, "GRACE_S", 0.0)
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    control = Control(folder, Config(), None)
    for ahead_ms in (3600 * 1000, 400 * 24 * 3600 * 1000):
        entry = made_at(control.jobs.clock() + ahead_ms)
        control.records.write(lambda db, entry=entry: audit_log.add(db, entry))
    with capture_logs() as said:
        control.log_retention.forget()
    (held,) = [each for each in said if each["event"] == "audit_log_held"]
    assert held["sequence"] == 2
    control.close()
    done = CliRunner().invoke(cli, ["check", "--data", str(folder.root)])
    assert (done.exit_code, done.output.count("note: ")) == (0, 1)
    assert "note: line 2 of the audit log is dated in the future" in done.output


def test_signing_key_that_the_service_manager_replaced_stands_in_the_audit_log(tmp_path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    handed = tmp_path / "credentials"
    handed.mkdir()
    for _ in range(2):
        (handed / "signing.key").unlink(missing_ok=True)
        key = SigningKey.load_or_create(handed / "signing.key")
        (handed / "signing.key").chmod(0o440)
        for _ in range(2):
            control = Control(folder, Config(), handed)
            reader = control.records.reader()
            log = audit_log.page(reader, site_id=None, env_id=None, before=None, limit_count=9)
            control.close()
    (entry,) = log.items
    assert (entry.action, entry.target, entry.actor) == (
        Action.SIGNING_KEY_ROTATED,
        key.key_id,
        SYSTEM,
    )
