"""Output into bounded lines, and lines to control in order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.builds.errors import LeaseLostError
from hooks.builds.logs.build_log import (
    BATCH_LINES_MAX,
    LINE_CHARS_MAX,
    LOG_CHARS_MAX,
    LOG_LINES_MAX,
    BuildLog,
)
from hooks.builds.logs.npm_engines import EngineFilter


class Received:
    """What control got."""

    def __init__(self):
        self.lines = []
        self.batches = []

    async def send(self, first, lines):
        assert first == len(self.lines)
        self.batches.append(len(lines))
        self.lines += lines


async def logged(*chunks, end=True):
    log, received = BuildLog(), Received()
    output = log.output("build")
    for chunk in chunks:
        output.feed(chunk)
    if end:
        output.end()
    sending = asyncio.create_task(log.run(received.send))
    await log.flush()
    sending.cancel()
    return [line.line for line in received.lines], output


@pytest.mark.parametrize("prefix", ["npm error", "npm ERR!"])
@pytest.mark.parametrize("size", [7, 10_000])
async def test_list_of_npms_options_is_left_out(prefix, size):
    said = [f"{prefix} Missing: a@1 from lock file", prefix, f"{prefix} Clean install a project"]
    usage = [f"{prefix} npm ci", prefix, f"{prefix} Options:", *[f"{prefix}   --omit"] * 90]
    ends = [f'{prefix} Run "npm help ci" for more info']
    more = [f"{prefix} A complete log of this run", "done", f"{prefix} code 1"]
    text = "\n".join([*said, f"{prefix} Usage:", *usage, *ends, *more]).encode()
    lines, output = await logged(*(text[at : at + size] for at in range(0, len(text), size)))
    told = f"{prefix} Usage: (npm's list of its options is left out)"
    assert lines == output.tail == [*said, told, *more]
    lines, _ = await logged(f"{prefix} Usage:\n{prefix} npm ci\nother\n{prefix} x\n".encode())
    assert lines == [told, "other", f"{prefix} x"], "what is no npm's ends it too"


@pytest.mark.parametrize("size", [7, 10_000])
async def test_warning_of_an_engine_is_one_line_and_the_first_is_kept(size):
    warn = "npm warn EBADENGINE"
    current = [f"{warn}   current: {{ node: 'v20.20.2', npm: '11.0.0' }}", f"{warn} }}"]
    first = [
        f"{warn} Unsupported engine {{",
        f"{warn}   package: 'nuxt@4.5.2',",
        f"{warn}   required: {{ node: '^22.19.0 || >=26.0.0' }},",
    ]
    second = [
        f"{warn} Unsupported engine {{",
        f"{warn}   package: '@a/b@1.0.0',",
        f"{warn}   required: {{",
        f"{warn}     npm: '>=10',",
        f"{warn}     node: '>=22'",
        f"{warn}   }},",
    ]
    odd = [f"{warn} Unsupported engine {{", f"{warn}   package: 'c@1'", "other"]
    open_end = [f"{warn} Unsupported engine {{", *[f"{warn} x"] * 30]
    text = "\n".join([*first, *current, "said", *second, *current, *odd, *open_end]).encode()
    log, received = BuildLog(), Received()
    output = log.output("install")
    for at in range(0, len(text), size):
        output.feed(text[at : at + size])
    output.end()
    sending = asyncio.create_task(log.run(received.send))
    await log.flush()
    sending.cancel()
    assert [line.line for line in received.lines] == [
        f"{warn} nuxt@4.5.2 asks for node ^22.19.0 || >=26.0.0",
        "said",
        f"{warn} @a/b@1.0.0 asks for node >=22 and npm >=10",
        *odd,
        *open_end,
    ]
    assert log.engine == "nuxt@4.5.2 asks for node ^22.19.0 || >=26.0.0; this server has 20.20.2"


@pytest.mark.parametrize(
    ("current", "said"),
    [
        (
            "node: 'v20.1.0', npm: '9.2.0'",
            "a@1 asks for node >=18 and npm >=10; this server has 20.1.0 and 9.2.0",
        ),
        ("node: 'v20.1.0'", None),
    ],
)
def test_warning_of_an_engine_blames_node_alone_only_where_it_is(current, said):
    warn = "npm warn EBADENGINE"
    lines = [
        f"{warn} Unsupported engine {{",
        f"{warn}   package: 'a@1',",
        f"{warn}   required: {{ node: '>=18', npm: '>=10' }},",
        f"{warn}   current: {{ {current} }}",
        f"{warn} }}",
    ]
    engines = EngineFilter()
    kept = engines.rest(lines)
    assert (engines.first, kept) == (said, lines if said is None else kept)


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\nt", b"wo"], ["one", "two"]),
        ([b"\n\nx\n"], ["", "", "x"]),
        ([b"dos\r\nline\r\n"], ["dos", "line"]),
        ([b"10%\r50%\r100%\ndone\n"], ["100%", "done"]),
        ([b"10%\r", b"50%\r", b"100%\n"], ["100%"]),
        ([b"\x1b[32mgreen\x1b[0m\n"], ["\x1b[32mgreen\x1b[0m"]),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
        (["ä".encode()[:1], "ä".encode()[1:] + b"\n"], ["ä"]),
        (["ä".encode()[:1]], ["\ufffd"]),
        ([b"a\0b\n"], ["a\ufffdb"]),
        ([], []),
        ([b"x" * (LINE_CHARS_MAX + 5) + b"\n"], ["x" * LINE_CHARS_MAX, "x" * 5]),
    ],
)
async def test_output_becomes_lines(chunks, lines):
    assert (await logged(*chunks))[0] == lines


async def test_line_without_end_is_cut_before_it_fills_the_memory():
    lines, _ = await logged(*[b"x" * 50_000] * 10, end=False)
    assert len(lines) == 500_000 // LINE_CHARS_MAX
    assert set(map(len, lines)) == {LINE_CHARS_MAX}


async def test_endless_progress_bar_takes_one_line():
    lines, _ = await logged(*[b"working...\r" * 5000] * 20, b"done\n")
    assert lines == ["done"]


@given(
    st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n\0", codec="utf-8"))),
    st.integers(1, 7),
)
async def test_lines_do_not_depend_on_how_the_output_was_cut(texts, size):
    data = "".join(f"{text}\n" for text in texts).encode()
    lines, _ = await logged(*(data[i : i + size] for i in range(0, len(data), size)))
    assert lines == texts


async def test_full_log_says_so_counts_what_it_leaves_out_and_keeps_the_end():
    total = LOG_LINES_MAX + 10_000
    chunks = [b"".join(b"%d\n" % n for n in range(i, i + 1000)) for i in range(0, total, 1000)]
    lines, output = await logged(*chunks)
    assert lines[:LOG_LINES_MAX] == [str(n) for n in range(LOG_LINES_MAX)]
    assert "log truncated" in lines[LOG_LINES_MAX]
    assert lines[LOG_LINES_MAX + 1] == "... 9,980 lines left out; the last ones:"
    assert lines[LOG_LINES_MAX + 2 :] == [str(n) for n in range(total - 20, total)]
    assert output.tail == lines[-20:]


async def test_few_lines_beyond_the_bound_are_all_shown_at_the_end():
    long = b"y" * (LINE_CHARS_MAX - 1) + b"\n"
    fitting = LOG_CHARS_MAX // (LINE_CHARS_MAX - 1)
    lines, _ = await logged(long * fitting, b"a" * 2000 + b"\n", b"b\nc\n")
    assert lines[-3:] == ["a" * 2000, "b", "c"]
    assert lines[-4] == "... 0 lines left out; the last ones:"


async def test_tail_is_right_however_much_comes_at_once_when_the_log_is_full():
    head = b"x\n" * (LOG_LINES_MAX + 1)
    rest = b"".join(b"line %d\n" % n for n in range(5000))
    for size in (7, 100, 65_536):
        pieces = [rest[i : i + size] for i in range(0, len(rest), size)]
        lines, output = await logged(head, *pieces)
        assert output.tail == [f"line {n}" for n in range(4980, 5000)]
        assert lines[LOG_LINES_MAX + 1] == "... 4,981 lines left out; the last ones:"


async def test_lines_travel_in_bounded_batches():
    log, received = BuildLog(), Received()
    log.take("build", ["x"] * 2500)
    sending = asyncio.create_task(log.run(received.send))
    await log.flush()
    assert received.batches == [BATCH_LINES_MAX, BATCH_LINES_MAX, 500]
    sending.cancel()


async def test_lines_that_come_while_others_are_sent_are_flushed_too():
    log, received = BuildLog(), Received()

    async def send(first, lines):
        if first == 0:
            log.line("build", "late")
        await asyncio.sleep(0.01)
        await received.send(first, lines)

    sending = asyncio.create_task(log.run(send))
    log.line("build", "early")
    await log.flush()
    assert [line.line for line in received.lines] == ["early", "late"]
    sending.cancel()


async def test_lines_are_sent_soon_without_a_flush():
    log, received = BuildLog(), Received()
    sending = asyncio.create_task(log.run(received.send))
    log.line("detect", "hello")
    async with asyncio.timeout(20):
        while not received.lines:
            await asyncio.sleep(0.01)
    sending.cancel()


async def test_last_lines_may_be_left_for_the_end():
    log, received = BuildLog(), Received()
    log.take("build", ["x"] * (BATCH_LINES_MAX + 1))
    sending = asyncio.create_task(log.run(received.send))
    await log.flush(but_for_a_batch=True)
    assert log.rest() is None
    log.line("build", "last")
    await log.flush(but_for_a_batch=True)
    sending.cancel()
    assert log.rest().first == len(received.lines) == BATCH_LINES_MAX + 1
    assert [line.line for line in log.rest().lines] == ["last"]


async def test_flush_of_nothing_returns_at_once():
    await asyncio.wait_for(BuildLog().flush(), 20)


async def test_lost_lease_ends_the_sending():
    async def send(first, lines):
        raise LeaseLostError("gone")

    log = BuildLog()
    log.line("detect", "hello")
    with pytest.raises(LeaseLostError):
        await log.run(send)
