"""A builder slot as a process, against control's side of the protocol."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hooks.builds.profiles.runtimes import MACHINE_PATH
from hooks.builds.sandbox.processor_share import KEEPER_NAME

SLOT = """
import sys
from pathlib import Path
import gitd.starting  # first, as `gitd builder` does
from hooks.builds.slot.builder import BuilderConfig, main
socket, scratch, uid, dies = sys.argv[1:]
ids = int(uid) if uid else None
main(BuilderConfig(Path(socket), Path(scratch), uid=ids, gid=ids, die_with_parent=bool(dies)))
"""
STATIC = {"index.html": b"<h1>hi</h1>\n", "style.css": b"body{}"}


def site(command, output="dist", **files):
    text = f"[build]\ncommand = '''{command}'''\noutput = \"{output}\"\n"
    return {"managed.toml": text.encode(), **files}


async def test_static_site_without_command_is_finished_without_fetching_its_source(control, slot):
    job = await control.build(STATIC)
    assert job.outcome["status"] == "succeeded"
    assert job.outcome["profile"] == "static"
    assert (job.outcome["output"], job.outcome["folder"]) == ("source", ".")
    assert job.output is None
    assert job.text == ["static, by index.html: serves the whole tree, as committed"]


async def test_build_command_turns_the_source_into_the_output(control, slot, unpacked):
    job = await control.build(
        site("mkdir -p dist/css && cp page.html dist/index.html && ln -s index.html dist/home"),
    )
    assert job.outcome["error"]["code"] == "build.command_failed", job.outcome["error"]["message"]
    job = await control.build(
        {
            **site("mkdir -p dist/css && cp page.html dist/index.html && ln -s index.html dist/h"),
            "page.html": b"<p>",
        }
    )
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.outcome["output"] == "tar"
    assert unpacked(job.output) == {"css": None, "index.html": b"<p>", "h": "index.html"}


async def test_build_log_has_the_command_its_output_and_every_stage(control, slot):
    job = await control.build(site("echo one; echo two >&2; mkdir dist; echo x > dist/a"))
    assert job.stage("build") == [
        "$ echo one; echo two >&2; mkdir dist; echo x > dist/a",
        "one",
        "two",
    ]
    assert job.stage("source") == ["1 file, 92 bytes, commit 8c1f8c1f8c1f"]
    assert job.stage("collect") == ["1 file, 2 bytes, from dist"]
    stages = ["detect", "source", "cache", "build", "collect"]
    assert list(job.outcome["timings"]) == stages
    assert job.marks == [(stage, mark) for stage in stages for mark in ("begin", "end")]
    ends = {line["stage"]: line["seconds"] for line in job.lines if line.get("mark") == "end"}
    assert ends == job.outcome["timings"]


async def test_stage_that_fails_ends_too(control, slot):
    job = await control.build(site("exit 3"))
    assert job.outcome["error"]["code"] == "build.command_failed"
    assert job.marks[-2:] == [("build", "begin"), ("build", "end")]
    assert list(job.outcome["timings"]) == ["detect", "source", "cache", "build"]
    assert job.text[-1] == "The build command ended with exit status 3."


async def test_steps_run_in_one_tree_each_with_its_own_stage_and_time(control, slot, unpacked):
    install = "mkdir -p .venv/bin && printf 'echo tool' > .venv/bin/tool && chmod +x .venv/bin/tool"
    text = f'[build]\ninstall = "{install}"\ncommand = "mkdir out && tool > out/index.html"\n'
    job = await control.build({"managed.toml": text.encode()})
    assert unpacked(job.output) == {"index.html": b"tool\n"}
    assert job.stage("install") == [f"$ {install}"]
    assert job.stage("build") == ["$ mkdir out && tool > out/index.html"]
    assert job.stage("collect") == ["1 file, 5 bytes, from out"]
    assert job.outcome["settings"]["output"] == "out"
    assert set(job.outcome["timings"]) == {
        "detect",
        "source",
        "cache",
        "install",
        "build",
        "collect",
    }


async def test_failing_step_is_named(control, slot):
    job = await control.build({"managed.toml": b'[build]\ninstall = "exit 3"\ncommand = "x"'})
    assert job.outcome["error"]["message"] == "The install command ended with exit status 3."
    assert job.stage("build") == []


async def test_build_that_fills_none_of_the_usual_folders_says_where_it_looked(control, slot):
    job = await control.build({"managed.toml": b'[build]\ncommand = "mkdir dist; touch dist/a"'})
    assert job.outcome["error"]["code"] == "build.output_missing"
    assert job.outcome["error"]["message"].startswith("None of dist, build, out, ")


async def test_site_of_a_sub_folder_is_built_from_that_folder_alone(control, slot, unpacked):
    files = {
        "managed.toml": b'[build]\ncommand = "find . -type f ! -name found | sort > found"\n'
        b'[sites]\nacme-store = "apps/store"\n',
        "Procfile": b"web: ./other",
        "apps/store/index.html": b"<p>",
        "apps/store/managed.toml": b'[build]\noutput = "."',
        "apps/other/x": b"",
    }
    job = await control.build(files)
    assert job.asked_for == ["apps/store"]
    assert unpacked(job.output) == {
        "index.html": b"<p>",
        "found": b"./index.html\n./managed.toml\n",
    }
    assert job.text[0] == "static, by managed.toml: build; serves the whole of apps/store"


async def test_sub_folder_without_a_command_is_finished_by_its_path(control, slot):
    job = await control.build(
        {"managed.toml": b'[build]\nroot = "web"\noutput = "public"', "web/public/a": b"1"}
    )
    assert (job.outcome["output"], job.outcome["folder"]) == ("source", "web/public")
    assert job.outcome["is_public"]


async def test_sub_folder_that_is_not_there_is_told(control, slot):
    job = await control.build({"managed.toml": b'[build]\nroot = "web"', "index.html": b"1"})
    assert job.outcome["error"]["code"] == "build.config_invalid"
    assert "'web'" in job.outcome["error"]["message"]


async def test_settings_that_are_no_text_are_the_commits_fault(control, slot):
    job = await control.build({"managed.toml": "target", "index.html": b"1"})
    assert job.outcome["error"]["code"] == "build.config_invalid"
    assert "managed.toml must be a plain file of UTF-8 text" in job.outcome["error"]["message"]


LANGUAGES = {
    "php": {"index.php": b"<?php"},
    "composer": {"composer.json": b"{}", "public/index.php": b"<?php"},
    "uv": {"uv.lock": b"", "Procfile": b"web: python3 app.py"},
    "node": {"package.json": b'{"scripts": {"start": "node app.js"}}'},
}


async def test_program_that_the_machine_lacks_is_named_before_anything_is_fetched(control, slot):
    lacking = [name for name in LANGUAGES if shutil.which(name, path=MACHINE_PATH) is None]
    if not lacking:
        pytest.skip("this machine lacks none of the programs that profiles need")
    job = await control.build(LANGUAGES[lacking[0]])
    assert job.outcome["error"]["code"] == "build.runtime_missing"
    assert job.outcome["error"]["message"].startswith(f"This build needs {lacking[0]}, which")
    assert job.asked_for == []


async def test_failing_command_reports_its_exit_status_and_last_lines(control, slot):
    job = await control.build(site("for i in $(seq 30); do echo line $i; done; exit 7"))
    error = job.outcome["error"]
    assert (error["code"], error["exit_status"]) == ("build.command_failed", 7)
    first = "The build command ended with exit status 7."
    last = [f"line {n}" for n in range(11, 31)]
    assert error["message"].splitlines() == [first, "Its last lines:", *last]
    assert job.text[-2:] == ["line 30", first]


async def test_version_that_the_server_has_not_is_told_before_anything_runs(control, slot):
    files = {".python-version": b"3.99\n", "requirements.txt": b"", "Procfile": b"web: python3 a"}
    job = control.queue({**files, "managed.toml": b'[build]\ninstall = "exit 3"'})
    await job.said(".python-version asks for python 3.99;")
    assert any(line.startswith(".python-version asks for python 3.99;") for line in job.text[:3])
    job.canceled.set()
    await slot.cleaned()


async def test_step_that_fails_tells_which_version_the_server_has_not(control, slot):
    files = {".python-version": b"3.99\n", "requirements.txt": b"", "Procfile": b"web: python3 a"}
    job = await control.build({**files, "managed.toml": b'[build]\ninstall = "exit 3"'})
    lines = job.outcome["error"]["message"].splitlines()
    assert lines[0] == "The install command ended with exit status 3."
    said = "It may be this: .python-version asks for python 3.99; this server has "
    assert lines[1].startswith(said)


async def test_later_step_that_fails_tells_which_package_wants_another_node(control, slot):
    warning = (
        "npm warn EBADENGINE Unsupported engine {\nnpm warn EBADENGINE   package: 'a@1.0.0',\n"
        "npm warn EBADENGINE   required: { node: '>=99' },\n"
        "npm warn EBADENGINE   current: { node: 'v20.1.0', npm: '11.0.0' }\n"
        "npm warn EBADENGINE }\n"
    )
    settings = b'[build]\ninstall = "cat said"\ncommand = "exit 3"\n'
    job = await control.build({"managed.toml": settings, "said": warning.encode()})
    assert job.outcome["error"]["message"].splitlines() == [
        "The build command ended with exit status 3.",
        "It may be this: a@1.0.0 asks for node >=99; this server has 20.1.0",
    ]


async def test_reason_far_above_the_end_stands_in_the_first_lines(control, slot):
    says = "npm error `npm ci` can only install packages when your package.json and "
    says += "package-lock.json or npm-shrinkwrap.json are in sync."
    command = "cat said; for i in $(seq 60); do echo npm error Missing: a$i from lock file; done"
    job = await control.build({**site(f"{command}; exit 1"), "said": f"{says}\n".encode()})
    fix = "run `npm install` and commit it"
    assert job.outcome["error"]["message"].splitlines() == [
        "The build command ended with exit status 1.",
        f"package-lock.json does not fit package.json: {fix}",
    ]


async def test_reason_that_may_not_be_all_comes_with_the_last_lines(control, slot):
    job = await control.build(site("echo No matching version found for a@9.; echo more; exit 1"))
    lines = job.outcome["error"]["message"].splitlines()
    assert lines[1].startswith("No matching version found for a@9: ")
    assert lines[2:] == ["Its last lines:", "No matching version found for a@9.", "more"]


async def test_commit_that_nothing_detects_fails_with_what_was_looked_for(control, slot):
    job = await control.build({"main.c": b"int main;"})
    assert job.outcome["error"]["code"] == "build.undetected"
    assert "Procfile" in job.outcome["error"]["message"]


async def test_procfile_with_command_keeps_the_whole_tree_after_it(control, slot, unpacked):
    job = await control.build(
        {
            **site("echo made > made.txt", output="."),
            "Procfile": b"web: ./run\nrelease: ./migrate\n",
            "run": (b"#!/bin/sh\n", 0o755),
            ".hidden/x": b"1",
        }
    )
    assert job.outcome["profile"] == "procfile"
    assert job.outcome["run"] == {"web": "./run", "release": "./migrate", "health": None}
    assert {"made.txt", ".hidden/x", "managed.toml", "run"} <= set(unpacked(job.output))


async def test_files_that_no_step_touched_are_named_and_not_sent(control, slot, unpacked):
    tools = {"w/run": (b"#!/bin/sh\n", 0o755), "w/a": b"1", "w/b": b"2", "w/c": b"3", "w/d": b"4"}
    command = "cd w; touch a; cp -p b e; chmod +x c; mv d f"
    job = await control.build({**site(command, output="w"), **tools})
    assert job.outcome["unchanged"] == {"folder": "w", "paths": ["b", "run"]}
    assert set(unpacked(job.sent)) == {"a", "c", "e", "f"}
    expected = {"run": b"#!/bin/sh\n", "a": b"1", "b": b"2", "c": b"3", "e": b"2", "f": b"4"}
    assert unpacked(job.output) == expected


async def test_static_output_leaves_out_what_is_not_published(control, slot, unpacked):
    job = await control.build(
        site("mkdir -p dist/.well-known dist/.git; cd dist; touch a .env .well-known/b .git/c")
    )
    assert set(unpacked(job.output)) == {"a", ".well-known", ".well-known/b"}


async def test_build_sees_what_is_promised_and_nothing_of_the_parents(control, slot):
    job = await control.build(site("env | sort; pwd; id -u; cat /proc/1/environ; false"))
    lines = job.stage("build")
    for expected in (
        "CI=true",
        "GITD_SITE=acme-store",
        "HOME=/home/app",
        "/app",
        "1000",
    ):
        assert expected in lines
    assert not any("leakme" in line for line in lines)
    assert not any(line.startswith(("GITD_COMMIT", "GITD_REF", "GITD_ENVIR")) for line in lines)


async def test_build_is_told_of_itself_what_it_asks_for(control, slot):
    asked = 'facts = ["ref", "environment"]'
    job = await control.build(
        {"managed.toml": f'[build]\n{asked}\ncommand = "env; false"\noutput = "."'.encode()}
    )
    lines = job.stage("build")
    assert "GITD_ENVIRONMENT=production" in lines
    assert "GITD_REF=refs/heads/main" in lines
    assert not any(line.startswith("GITD_COMMIT") for line in lines)


async def test_build_that_takes_too_long_is_ended_with_all_its_processes(control, slot, gone):
    job = await control.build(
        site("echo begun; setsid sleep 4711 & nohup setsid sleep 4711 & sleep 4711"), timeout_s=3
    )
    error = job.outcome["error"]
    assert error["code"] == "build.timed_out"
    assert error["message"] == "time: the build took longer than 3 s (builders.timeout_s)."
    assert job.text[-1] == error["message"]
    assert "begun" in job.text
    gone("4711", timeout_s=0)
    await slot.cleaned()


async def test_what_a_build_leaves_running_is_dead_before_its_output_is_read(
    control, slot, gone, unpacked
):
    job = await control.build(
        site("mkdir dist; echo 1 > dist/a; (setsid sh -c 'sleep 4712; echo 2 > dist/a') & true")
    )
    assert unpacked(job.output) == {"a": b"1\n"}
    gone("4712", timeout_s=0)


async def test_what_is_built_is_closed_to_other_users(control, slot, gone):
    """Those of other slots, and of sites, are on the same machine."""
    job = control.queue(site("echo begun; sleep 4730"))
    await job.said("begun")
    for folder in (slot.scratch, *slot.scratch.iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    job.canceled.set()
    await asyncio.to_thread(gone, "4730")


async def test_output_that_the_build_closed_to_everybody_is_the_commits_fault(control, slot):
    job = await control.build(site("mkdir dist; echo 1 > dist/a; chmod 000 dist"))
    assert job.outcome["error"]["code"] == "build.output_invalid"
    await slot.cleaned()


# Two that nothing but SIGKILL ends: one left by its parents, one in a session of its own.
STUBBORN = """
trap "" TERM INT HUP
(sleep 4713 & sleep 4713) &
setsid sh -c "trap : TERM; while true; do sleep 4713; done" &
mkdir -p t && touch t/$(seq -s " t/" 500)
echo begun
sleep 4713
"""


async def test_canceled_build_is_killed_whole_at_once_and_the_next_one_starts(control, slot, gone):
    # No heartbeat of this lease is due for minutes: it is told, and does not ask.
    job = control.queue(site(STUBBORN), lease_s=600.0)
    await job.said("begun")
    job.canceled.set()
    after = await control.build(site("mkdir dist; echo x > dist/a"), lease_s=600.0)
    assert after.outcome["status"] == "succeeded"
    await asyncio.to_thread(gone, "4713")
    assert job.outcome is None
    await slot.cleaned()


MANY = (
    'python3 -c "import os; [(open(a, \\"w\\").close(), [os.link(a, a + str(n)) for n in'
    ' range(50_000)]) for a in \\"ab\\"]"'
)


# A slot removes by itself, and has `chmod` help it where a folder is closed. Here that waits.
HELD_UP = """
printf '#!/bin/sh\nuntil [ -e "%s" ]; do sleep 0.05; done\nexec "%s" "$@"\n' "$1" "$2" > "$3"
cp /bin/chmod "$2"
"$2" 755 "$3"
mount --bind "$3" /bin/chmod
shift 3
exec "$@"
"""


@pytest.mark.root
async def test_second_cancel_in_a_row_does_not_wait_for_what_the_first_left(
    control, start_slot, open_dir
):
    may_go, chmod, held_up = (open_dir / name for name in ("may-go", "chmod", "held-up"))
    through = ("unshare", "--mount", "sh", "-ec", HELD_UP, "sh", may_go, chmod, held_up)
    slot = start_slot(through=through)
    first = control.queue(site("mkdir -m 0 closed; echo begun; sleep 4720"), lease_s=600.0)
    await first.said("begun")
    first.canceled.set()
    second = control.queue(site("echo begun; sleep 4720"), lease_s=600.0)
    await second.said("begun")
    assert len(slot.leftovers) == 2
    second.canceled.set()
    third = control.queue(site("echo begun; sleep 4720"), lease_s=600.0)
    await third.said("begun")
    assert len(slot.leftovers) == 3, "it has not waited until the first one's was gone"
    may_go.touch()
    third.canceled.set()
    await slot.cleaned()


async def test_slot_waits_for_what_a_build_left_where_the_disk_has_not_enough_without(
    control, slot
):
    """Else a few large builds in a row would have all of it."""
    limits = {"disk_bytes_max": 1 << 60}
    first = control.queue(
        site(f"{MANY}; echo begun; sleep 4721"), lease_s=600.0, timeout_s=300, limits=limits
    )
    await first.said("begun", 200)
    first.canceled.set()
    second = control.queue(site("echo begun; sleep 4721"), lease_s=600.0)
    await second.said("begun")
    assert len(slot.leftovers) == 1
    second.canceled.set()
    await slot.cleaned()


async def test_build_learns_the_name_of_no_lease(control, slot):
    job = await control.build(
        site("mkdir dist; cat /proc/self/mountinfo /proc/self/mounts > dist/a")
    )
    mounts = job.output
    assert str(slot.scratch).encode() in mounts
    assert job.lease["lease_id"].encode() not in mounts
    assert job.lease["job_id"].encode() not in mounts


async def test_cancel_itself_lets_the_slot_take_the_next_build(control, start_slot, alive):
    slot = start_slot(has_clock=True)
    job = control.queue(site("echo begun; sleep 4719 & wait"), lease_s=600.0)
    await job.said("begun")
    async with asyncio.timeout(30):
        while not any(beat["wait_s"] for beat in job.beats):  # one that control holds
            job.beaten.clear()
            await job.beaten.wait()
    await slot.stop_clock()
    after = control.queue(site("mkdir dist; echo x > dist/a"), lease_s=600.0)
    job.canceled.set()
    await control.taken(after)
    assert alive("sleep 4719") == []
    await asyncio.wait_for(after.finished.wait(), 30)
    assert after.outcome["status"] == "succeeded"


async def test_lost_lease_ends_the_build_and_the_slot_goes_on(control, slot, gone):
    job = control.queue(site("echo begun; sleep 4714"), lease_s=2)
    await job.said("begun")
    job.is_lost = True
    await asyncio.to_thread(gone, "4714")
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"
    assert job.outcome is None


async def test_build_outlives_a_short_absence_of_control(control, slot, unpacked):
    job = control.queue(site("echo begun; sleep 1; mkdir dist; echo 1 > dist/a"), lease_s=10)
    await job.said("begun")
    await control.stop()
    await asyncio.sleep(1.2)
    await control.start()
    await asyncio.wait_for(job.finished.wait(), 30)
    assert unpacked(job.output) == {"a": b"1\n"}
    assert job.stage("collect") == ["1 file, 2 bytes, from dist"]


async def test_build_is_ended_when_control_stays_away_longer_than_the_lease(control, slot, gone):
    job = control.queue(site("echo begun; sleep 4715"), lease_s=2)
    await job.said("begun")
    await control.stop()
    await asyncio.to_thread(gone, "4715")
    await control.start()
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"


async def test_failed_calls_are_repeated_and_no_log_line_is_lost_or_doubled(
    control, slot, unpacked
):
    control.failing = {"log": 2, "source": 1, "output": 1, "finish": 2, "heartbeat": 1}
    job = await control.build(
        site("for i in $(seq 3000); do echo $i; done; mkdir dist; echo 1 > dist/a")
    )
    assert job.stage("build")[1:] == [str(n) for n in range(1, 3001)]
    assert unpacked(job.output) == {"a": b"1\n"}
    assert control.failing == {"log": 0, "source": 0, "output": 0, "finish": 0, "heartbeat": 0}


async def test_source_that_breaks_off_is_unpacked_anew(control, slot, unpacked):
    control.breaking = {"source": True}
    files = {f"dist/{number}": bytes(number << 10) for number in range(9)}
    limits = {"disk_bytes_max": 80 << 10}  # with which it could not be there twice
    job = await control.build({**site("rm dist/8"), **files}, limits=limits)
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.asked_for == [".", "."]
    assert len(job.outcome["unchanged"]["paths"]) == 8
    del files["dist/8"]
    assert {f"dist/{name}": data for name, data in unpacked(job.output).items()} == files


async def test_call_that_never_succeeds_fails_the_build_and_not_the_slot(control, slot):
    control.failing = {"source": 1 << 30}
    job = await control.build(site("true"), lease_s=0.3)
    assert job.outcome["error"]["code"] == "build.internal"
    assert job.outcome["error"]["message"] == CRASHED.format(job.id)
    control.failing = {"finish": 1 << 30}
    lost = control.queue(STATIC, lease_s=0.3)
    await control.taken(lost)
    await asyncio.sleep(1)
    control.failing = {}
    after = await control.build(STATIC)
    assert after.outcome["status"] == "succeeded"
    assert lost.outcome is None


CRASHED = (
    "The builder failed, through no fault of the commit. The server's log says why, at job {}."
)


@pytest.mark.parametrize(
    ("call", "goes_on", "pid"),
    [("heartbeat", "setsid sleep", "4761"), ("log", "while sleep 0.1; do date; done; :", "4762")],
)
async def test_answer_that_nobody_foresaw_ends_that_build_alone_and_all_of_it(
    control, slot, gone, call, goes_on, pid
):
    job = control.queue(site(f"echo begun; {goes_on} {pid}"), lease_s=0.6)
    await job.said("begun")
    assert len(slot.leftovers) == 1
    control.refusing = {call: 1}
    await asyncio.wait_for(job.finished.wait(), 30)
    assert job.outcome["error"]["code"] == "build.internal"
    assert job.outcome["error"]["message"] == job.text[-1] == CRASHED.format(job.id)
    await asyncio.to_thread(gone, pid)
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"
    await slot.cleaned()


async def test_end_of_a_build_that_control_does_not_take_is_told_as_a_crash(control, slot):
    control.refusing = {"finish": 1}
    job = await control.build(STATIC)
    assert job.outcome["error"]["code"] == "build.internal"
    assert job.outcome["error"]["message"] == CRASHED.format(job.id)
    control.refusing = {"finish": 2}
    lost = control.queue(STATIC)
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"
    assert lost.outcome is None


async def test_output_that_control_finds_too_large_fails_the_build(control, slot):
    control.refusing = {"output": 1}
    job = await control.build(site("mkdir dist; touch dist/a"))
    assert job.outcome["error"]["code"] == "build.output_too_large"


@pytest.mark.parametrize(("limits", "left"), [({}, 1), ({"processors_free_min": 0}, 0)])
async def test_commands_leave_a_processor_to_others_unless_they_need_not(
    control, slot, limits, left
):
    job = await control.build(site("mkdir dist; nproc > dist/a; cat dist/a"), limits=limits)
    assert job.stage("build")[1:] == [str(max(1, len(os.sched_getaffinity(0)) - left))]


@pytest.mark.root
async def test_build_that_writes_faster_than_it_may_is_told_why_it_waits(control, slot):
    command = "mkdir dist; head -c 30M /dev/zero > dist/a; sleep 1; truncate -s 1 dist/a"
    limits = {"write_bytes_per_s_max": 16 << 20, "write_burst_bytes_max": 8 << 20}
    job = await control.build(site(command), limits=limits)
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.stage("build")[1] == (
        "waits for the disk: the builds of this slot wrote more than 8 MiB, and go on at 16 MiB a"
        " second (builders.write_burst_bytes_max, builders.write_bytes_per_s_max)"
    )
    assert re.fullmatch(r"waited \d+\.\d s for the disk", job.stage("build")[2])


@pytest.mark.root
async def test_log_of_a_build_that_is_halted_for_too_long_says_for_how_long_it_was(control, slot):
    command = "mkdir dist; head -c 40M /dev/zero > dist/a; sleep 4731"
    limits = {"write_bytes_per_s_max": 1 << 20, "write_burst_bytes_max": 0}
    job = await control.build(site(command), limits=limits, timeout_s=4)
    assert job.outcome["error"]["code"] == "build.timed_out"
    waits, waited = job.stage("build")[1:3]
    assert waits.startswith("waits for the disk: ")
    assert 1 < float(waited.removeprefix("waited ").removesuffix(" s for the disk")) < 4


@pytest.mark.root
async def test_build_with_a_pace_of_none_is_not_halted(control, slot):
    command = "mkdir dist; head -c 30M /dev/zero > dist/a; sleep 1"
    limits = {"write_bytes_per_s_max": 0, "write_burst_bytes_max": 0}
    job = await control.build(site(command), limits=limits)
    assert len(job.stage("build")) == 1


@pytest.mark.root
async def test_slot_and_its_keeper_leave_a_processor_to_others_as_commands_do(control, start_slot):
    slot = start_slot(cpu_weight=10)
    everything = sorted(os.sched_getaffinity(0))
    for count, left in ((1, everything[1:] or everything), (0, everything)):
        job = await control.build(site("true"), limits={"processors_free_min": count})
        assert job.outcome["error"]["code"] == "build.output_missing"
        tasks = Path(f"/proc/{slot.process.pid}/task")
        children = (tasks / str(slot.process.pid) / "children").read_text().split()
        names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children]
        keeper = int(children[names.index(KEEPER_NAME)])
        for thread in (keeper, *(int(task.name) for task in tasks.iterdir())):
            assert sorted(os.sched_getaffinity(thread)) == left


@pytest.mark.parametrize(
    ("command", "limits", "said"),
    [
        (
            "for i in $(seq 40); do sleep 4731 & done; wait",
            {"process_count_max": 20},
            "processes: the build started more than 20 processes and threads ({})",
        ),
        (
            "head -c 3000000 /dev/zero > /tmp/x; sleep 4731",
            {"tmp_bytes_max": 1 << 20},
            "temporary files: the build filled /tmp or /dev/shm, which hold 1 MiB each ({})",
        ),
    ],
)
async def test_settings_of_the_server_bound_the_processes_and_memory_folders_of_a_build(
    control, slot, command, limits, said
):
    job = await control.build(site(command), limits=limits)
    assert job.outcome["error"]["code"] == "build.limit_exceeded", job.outcome
    [setting] = limits
    first = job.outcome["error"]["message"].splitlines()[0]
    assert first == f"{said.format(f'builders.{setting}')}."


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"disk_bytes_max": 2 << 20}, "took more than 2 MiB (builders.disk_bytes_max)."),
        ({"disk_free_bytes_min": 1 << 60}, "(builders.disk_free_bytes_min)."),
    ],
)
async def test_source_that_the_disk_has_no_room_for_is_fetched_once(control, slot, limits, said):
    job = await control.build({**site("mkdir dist"), "big": bytes(3 << 20)}, limits=limits)
    assert job.outcome["error"]["code"] == "build.limit_exceeded"
    assert job.outcome["error"]["message"].endswith(said)
    assert job.asked_for == ["."]


async def test_cache_that_the_disk_has_no_room_for_is_not_used(control, slot, packed):
    for cached in ({"big": bytes(3 << 20)}, {f"{n}": b"" for n in range(600)}):
        control.cache = packed({f"home/.cache/{name}": data for name, data in cached.items()})
        command = "mkdir dist; ls $HOME/.cache > dist/a; true"
        job = await control.build(site(command), limits={"disk_bytes_max": 2 << 20})
        assert job.outcome["status"] == "succeeded", job.outcome
        said = "hit; it is not used: disk: the files of the build took more than 2 MiB"
        assert job.stage("cache")[0].startswith(said)


async def test_output_with_a_file_that_was_cut_off_fails_a_build_that_did_not_mind(control, slot):
    """Holes take nothing of the disk, so that nobody had a reason to look through the files."""
    write = "mkdir dist; dd if=/dev/zero of=dist/x bs=4096 seek=1020 count=9; true"
    job = await control.build(site(write), limits={"file_bytes_max": 4 << 20})
    assert job.outcome["error"]["code"] == "build.limit_exceeded"
    assert job.outcome["error"]["message"] == (
        "file size: the build wrote a file of more than 4 MiB (builders.file_bytes_max)."
    )
    fits = "mkdir dist; truncate -s 4M dist/x; dd if=/dev/zero of=dist/y bs=4096 seek=1020 count=4"
    job = await control.build(site(fits), limits={"file_bytes_max": 4 << 20})
    assert job.outcome["status"] == "succeeded", job.outcome


async def test_huge_log_is_truncated_and_keeps_the_last_lines(control, slot):
    job = await control.build(site("seq 400000; echo last words; exit 3"))
    lines = job.stage("build")
    assert sum(map(len, lines)) < 5 << 20
    assert any("log truncated" in line for line in lines)
    assert lines[-2] == "last words"
    assert lines[1:1001] == [str(n) for n in range(1, 1001)]
    assert "last words" in job.outcome["error"]["message"]


async def test_endless_log_of_a_build_does_not_starve_its_heartbeats(control, slot):
    job = await control.build(site("yes"), timeout_s=4, lease_s=1)
    assert job.outcome["error"]["code"] == "build.timed_out"
    assert len(job.beats) >= 4


async def test_missing_output_folder_is_named(control, slot):
    job = await control.build(site("true", output="public/site"))
    assert job.outcome["error"]["code"] == "build.output_missing"
    assert "public/site" in job.outcome["error"]["message"]


async def test_output_that_cannot_be_an_artifact_is_refused_by_name(control, slot):
    cases = {
        "mkdir dist; mkfifo dist/pipe": ("build.output_invalid", "pipe"),
        "mkdir dist; touch dist/x; chmod u+s dist/x": ("build.output_invalid", "x"),
        "mkdir dist; touch dist/x; ln -s /etc/passwd dist/l": ("build.output_invalid", "l"),
        "mkdir dist; touch dist/x; ln -s ../../.. dist/l": ("build.output_invalid", "l"),
        "mkdir dist; touch dist/x; chmod 0 dist/x": ("build.output_invalid", "x"),
        "ln -s /etc dist": ("build.output_invalid", "dist"),
        "ln -s .. dist": ("build.output_invalid", "dist"),
        "touch dist": ("build.output_invalid", "dist"),
        "mkdir dist": ("build.output_missing", "dist"),
        r"""mkdir dist; touch "dist/$(printf 'a\nb')" """: ("build.output_invalid", "a"),
        "mkdir dist; head -c 3000000 /dev/zero > dist/x": ("build.output_too_large", "x"),
    }
    for command, expected in cases.items():
        job = await control.build(site(command), output_bytes_max=2_000_000)
        code, name = expected
        assert job.outcome["error"]["code"] == code, command
        assert name in job.outcome["error"]["message"], command


async def test_found_output_whose_name_is_no_text_is_refused_and_the_slot_goes_on(control, slot):
    """Nothing that is said of it could be sent: that ended the slot."""
    script = rb"""d="dist/$(printf '\377')"; mkdir -p "$d"; echo > "$d/index.html" """
    files = {"managed.toml": b'[build]\ncommand = "sh make.sh"\n', "make.sh": script}
    job = await control.build(files)
    assert job.outcome["error"]["code"] == "build.output_invalid", job.outcome
    assert "is not UTF-8" in job.outcome["error"]["message"]
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"


async def test_leftovers_of_a_killed_slot_are_removed_at_the_next_start(control, start_slot, gone):
    first = start_slot()
    deep = """python3 -c 'import os; [(os.mkdir("d"), os.chdir("d")) for _ in range(2000)]'"""
    job = control.queue(site(f"mkdir -p k/l && chmod 0 k/l k; {deep}; echo begun; sleep 4716"))
    await job.said("begun")
    assert len(first.leftovers) == 1
    first.stop(signal.SIGKILL)
    await asyncio.to_thread(gone, "4716")
    second = start_slot()
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"
    assert second.leftovers == []


async def test_sigterm_ends_the_build_and_the_slot_which_gives_it_back(control, start_slot, gone):
    slot = start_slot()
    job = control.queue(site("echo begun; setsid sleep 4717"))
    await job.said("begun")
    assert await asyncio.to_thread(slot.stop) == 0
    assert job.given_back.is_set()
    gone("4717")
    assert slot.leftovers == []


async def test_idle_slot_ends_at_sigterm_at_once(control, slot):
    await control.build(STATIC)
    began = asyncio.get_running_loop().time()
    assert await asyncio.to_thread(slot.stop) == 0
    assert asyncio.get_running_loop().time() - began < 15  # a lease is waited for twice as long


async def test_slot_and_its_build_die_with_the_parent_when_asked_to(control, open_dir, gone):
    """A parent between: a process that starts a slot and is then killed."""
    uid = "" if os.geteuid() else "60690"
    argv = [sys.executable, "-c", SLOT, str(control.socket), str(open_dir / "dies"), uid, "1"]
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code, *argv])
    job = control.queue(site("echo begun; setsid sleep 4718"))
    await job.said("begun")
    parent.kill()
    parent.wait()
    await asyncio.to_thread(gone, "4718")
    await asyncio.to_thread(gone, str(open_dir / "dies"))


async def test_slot_finds_control_that_starts_after_it(control, start_slot):
    await control.stop()
    start_slot()
    await asyncio.sleep(0.5)
    await control.start()
    assert (await control.build(STATIC)).outcome["status"] == "succeeded"


WITHOUT_BWRAP = """
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" &&
mount -t overlay none -o "lowerdir=/usr/bin,upperdir=$1/upper,workdir=$1/work" /usr/bin || exit 77
rm /usr/bin/bwrap; shift; exec "$@"
"""


def on_a_machine_without_bubblewrap(folder):
    """The program to run another one through, which sees /usr/bin without bwrap; or skip."""
    through = ("unshare", "--mount", "sh", "-c", WITHOUT_BWRAP, "sh", str(folder))
    if subprocess.run([*through, "test", "!", "-e", "/usr/bin/bwrap"], check=False).returncode:
        pytest.skip("needs root, and overlays, to hide bubblewrap")
    return through


async def test_without_bubblewrap_nothing_is_run_and_the_operator_is_told_what_to_install(
    control, start_slot, tmp_path
):
    start_slot(through=on_a_machine_without_bubblewrap(tmp_path))
    job = await control.build(site("touch ran"))
    assert job.outcome["error"]["code"] == "build.sandbox_unavailable"
    assert "/usr/bin/bwrap is not there: install bubblewrap" in job.outcome["error"]["message"]
    assert job.output is None
    job = await control.build({"index.html": b"<p>"})
    assert job.outcome["status"] == "succeeded", "that runs nothing"


WITHOUT_GROUPS = ("sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$0" "$@"')


@pytest.mark.root
async def test_memory_that_a_build_is_refused_without_control_groups_is_told_as_the_limit(
    control, start_slot
):
    start_slot(through=("unshare", "--mount", *WITHOUT_GROUPS))
    limits = {"memory_bytes_max": 64 << 20}
    for wanted in ("bytes(4 << 30)", "[b'1' * (1 << 20) for _ in range(1000)]"):
        job = await control.build(site(f'python3 -c "x = {wanted}"'), limits=limits)
        said = "memory: the build used more than 64 MiB (builders.memory_bytes_max)."
        assert job.outcome["error"]["code"] == "build.limit_exceeded", job.outcome
        assert job.outcome["error"]["message"].splitlines()[0] == said
    job = await control.build(site("echo MemoryError; mkdir dist; echo > dist/a"), limits=limits)
    assert job.outcome["status"] == "succeeded", job.outcome


async def test_two_slots_share_the_work(control, start_slot):
    start_slot("slot-0")
    start_slot("slot-1")
    command = "echo begun; sleep 1; mkdir dist; touch dist/a"
    jobs = [control.queue(site(command)) for _ in range(2)]
    await asyncio.gather(*(job.said("begun") for job in jobs))
    await asyncio.gather(*(asyncio.wait_for(job.finished.wait(), 30) for job in jobs))


async def test_source_arrives_with_its_links_and_executable_bits(control, slot):
    job = await control.build(
        {
            **site("./bin/run && readlink link && test ! -x data && exit 5"),
            "bin/run": (b"#!/bin/sh\necho ran\n", 0o755),
            "link": "bin/run",
            "data": b"",
        }
    )
    assert job.stage("build")[1:3] == ["ran", "bin/run"]
    assert job.outcome["error"]["exit_status"] == 5


async def test_source_that_would_be_written_outside_is_refused(control, slot, open_dir):
    job = await control.build({**site("true"), "../../escaped": b"x"})
    assert job.outcome["error"]["code"] == "build.output_invalid"
    job = await control.build({**site("true"), "up": "../..", "up/escaped": b"x"})
    assert job.outcome["error"]["code"] == "build.output_invalid"
    await slot.cleaned()
    assert not list(open_dir.rglob("escaped"))


async def test_static_build_is_answered_within_milliseconds(control, slot):
    await control.build(STATIC)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(10):
        began = loop.time()
        await control.build(STATIC)
        times.append(loop.time() - began)
    assert min(times) < 0.05, times


CANARY = "canary-7d1f+/4b'$x"


async def test_values_that_are_declared_reach_the_steps_and_no_log_shows_a_secret(
    control, slot, unpacked
) -> None:
    control.given = {
        "secrets": {"TOKEN": CANARY},
        "plain": {"URL": 'a$b "c"\n\u00e9'},
        "undeclared": ["OTHER"],
    }
    command = (
        'printf %s "$TOKEN"; printf %s "$TOKEN" | base64; env | grep TOKEN | od -An -tx1 -v;'
        ' tr "\\0" "\\n" </proc/1/cmdline | grep -c canary; mkdir dist;'
        ' printf %s "$URL" >dist/url; printf %s "$TOKEN" | sha256sum >dist/sum; echo "$TOKEN" >&2'
    )
    files = {
        "managed.toml": f"[build]\ncommand = '''{command}'''\noutput = 'dist'\n"
        "variables = ['TOKEN', 'URL']\n".encode()
    }
    job = await control.build(files)
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.declared == ["TOKEN", "URL"]
    assert job.outcome["settings"]["variables"] == "TOKEN URL"
    output = unpacked(job.output)
    assert output["url"] == b'a$b "c"\n\xc3\xa9'
    assert output["sum"].split()[0].decode() == hashlib.sha256(CANARY.encode()).hexdigest()
    assert job.stage("build")[-1] == "***"
    assert "given TOKEN, URL" in job.text
    assert "not given: OTHER, which build.variables does not declare" in job.text
    said = "\n".join(job.text)
    for spelling in (CANARY, base64.b64encode(CANARY.encode()).decode(), CANARY.encode().hex(" ")):
        assert spelling not in said
        assert spelling not in json.dumps(job.outcome)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ('echo "key=$TOKEN" > dist/env', "dist/env"),
        ('printf %s "$TOKEN" | base64 > dist/a', "dist/a"),
        ('touch "dist/$(printf %s "$TOKEN" | od -An -tx1 -v | tr -d " \\n")"', "dist/***"),
        ('ln -s "$(printf %s "$TOKEN" | tr / _)" dist/link; echo "$TOKEN" > dist/b', "dist/b"),
    ],
)
async def test_output_that_holds_a_secret_is_refused_by_name(control, slot, command, names) -> None:
    control.given = {"secrets": {"TOKEN": CANARY}}
    text = f"[build]\ncommand = '''mkdir dist; echo x >dist/x; {command}'''\noutput = 'dist'\n"
    job = await control.build({"managed.toml": f"{text}variables = ['TOKEN']\n".encode()})
    error = job.outcome["error"]
    assert error["code"] == "build.secret_in_output"
    assert error["message"].startswith(f"{names.removeprefix('dist/')} holds the secret TOKEN")
    assert CANARY not in json.dumps(job.outcome) + "".join(job.text)
    assert job.output is None


async def test_secret_that_names_the_folder_of_the_output_is_refused_too(control, slot) -> None:
    """The statement of the artifact has that name."""
    control.given = {"secrets": {"TOKEN": "canary-7d1f"}}
    command = 'mkdir -p "dist/$TOKEN"; echo > "dist/$TOKEN/index.html"'
    text = f"[build]\ncommand = '''{command}'''\nvariables = ['TOKEN']\n"
    job = await control.build({"managed.toml": text.encode()})
    assert job.outcome["error"]["code"] == "build.secret_in_output"
    assert "canary" not in json.dumps(job.outcome) + "".join(job.text)


async def test_build_that_was_given_a_secret_leaves_no_cache(control, slot) -> None:
    control.given = {"secrets": {"TOKEN": CANARY}}
    command = 'mkdir -p dist ~/.cache; echo > dist/x; echo "$TOKEN" > ~/.cache/token'
    text = f"[build]\ncommand = '''{command}'''\noutput = 'dist'\nvariables = ['TOKEN']\n"
    job = await control.build({"managed.toml": text.encode()})
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.cache_kept is None


async def test_last_words_of_a_failed_command_show_no_secret(control, slot) -> None:
    control.given = {"secrets": {"TOKEN": CANARY}}
    text = "[build]\ncommand = 'set -x; echo \"$TOKEN\"; exit 3'\nvariables = ['TOKEN']\n"
    job = await control.build({"managed.toml": text.encode()})
    assert job.outcome["error"]["code"] == "build.command_failed"
    assert "***" in job.outcome["error"]["message"]
    assert CANARY not in json.dumps(job.outcome) + "".join(job.text)


async def test_steps_share_the_processor_time_of_their_build(control, slot):
    burn = "python3 -c 'import time\nwhile time.process_time() < 1.3: pass'"
    text = f'[build]\ninstall = """{burn}"""\ncommand = """{burn}"""\n'
    job = await control.build({"managed.toml": text.encode()}, limits={"cpu_s_max": 2})
    assert job.outcome["error"]["code"] == "build.limit_exceeded", job.outcome
    assert "install" in job.outcome["timings"]
    said = "processor time: the build used more than 2 s (builders.cpu_s_max)."
    assert job.outcome["error"]["message"].startswith(said)
    assert job.stage("build")[0].startswith("$ python3"), "it was the second one's end"


@pytest.mark.parametrize(
    ("made", "web", "released"),
    [
        ("server pages", "node dist/server/entry.mjs", None),
        ("pages", None, {"index.html", "a", "a/index.html"}),
    ],
)
@pytest.mark.skipif(shutil.which("node", path=MACHINE_PATH) is None, reason="no node here")
async def test_program_that_a_build_did_not_make_is_not_run(
    control, slot, unpacked, made, web, released
):
    """As Astro makes pages alone where the adapter of a server is installed and not in use."""
    pages = "mkdir -p dist/a; echo a > dist/index.html; echo b > dist/a/index.html"
    server = "mkdir -p dist/server; echo c > dist/server/entry.mjs"
    parts = {"pages": pages, "server": server}
    build = "; ".join(parts[part] for part in made.split())
    package = {"scripts": {"build": "astro build"}, "dependencies": {"@astrojs/node": "9"}}
    files = {
        "package.json": json.dumps(package).encode(),
        "managed.toml": f"[build]\ninstall = false\ncommand = '{build}'\n".encode(),
    }
    job = await control.build(files)
    assert job.outcome["status"] == "succeeded", job.outcome
    assert job.outcome["run"].get("web") == web
    said = "the build made no dist/server/entry.mjs: the pages that it wrote are served"
    assert (said in job.text) == (web is None)
    if released is not None:
        assert set(unpacked(job.output)) == released
        assert job.outcome["is_public"]


@pytest.mark.skipif(shutil.which("node", path=MACHINE_PATH) is None, reason="no node here")
@pytest.mark.parametrize(
    ("target", "error"), [("dist", None), ("nowhere", None), ("..", "build.output_invalid")]
)
async def test_links_of_a_build_are_not_followed_to_see_what_it_made(control, slot, target, error):
    """What becomes of it would tell which files the machine has."""
    scripts = {"build": "react-router build", "start": "react-router-serve build/a.js"}
    command = f"mkdir dist; echo a > dist/index.html; ln -s {target} build"
    files = {
        "package.json": json.dumps({"scripts": scripts}).encode(),
        "managed.toml": f"[build]\ninstall = false\ncommand = '{command}'\n".encode(),
    }
    job = await control.build(files)
    assert (job.outcome["error"] or {}).get("code") == error, job.outcome
    assert job.outcome["run"].get("web") == (None if error else scripts["start"])
    assert not any(line.startswith("the build made no") for line in job.text)


@pytest.mark.skipif(shutil.which("node", path=MACHINE_PATH) is None, reason="no node here")
async def test_build_that_made_neither_a_program_nor_pages_fails_at_once(control, slot):
    package = b'{"scripts": {"build": "nuxt build"}, "dependencies": {"nuxt": "4"}}'
    settings = b"[build]\ninstall = false\ncommand = 'true'\n"
    job = await control.build({"package.json": package, "managed.toml": settings})
    assert job.outcome["error"]["code"] == "build.output_missing"
    assert any(line.startswith("the build made no .output/server/index.mjs") for line in job.text)


@pytest.mark.skipif(shutil.which("node", path=MACHINE_PATH) is None, reason="no node here")
async def test_cache_of_a_program_is_kept_and_no_part_of_its_release(control, slot, unpacked):
    command = "mkdir -p .next/cache .next/server; echo a > .next/cache/a; echo b > .next/server/b"
    text = f"[build]\ncommand = '''{command}'''\ncache = ['.next/cache']\n"
    package = b'{"scripts": {"build": "next build", "start": "next start"}}'
    files = {"managed.toml": text.encode(), "package.json": package}
    job = await control.build(files)
    assert job.outcome["status"] == "succeeded", job.outcome
    released = {".next", ".next/server", ".next/server/b"}
    assert set(unpacked(job.output)) == {*files, *released}
    assert unpacked(job.cache_kept)["app/.next/cache/a"] == b"a\n"
