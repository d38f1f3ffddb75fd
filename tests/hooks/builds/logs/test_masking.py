"""Masking: no spelling of a secret gets through, however it is cut into pieces."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooks.builds.errors import BuildFailedError
from hooks.builds.logs.leaks import refuse_secrets
from hooks.builds.logs.masking import HELD_BYTES_MAX, MASK, MaskedStream, Masker
from hooks.variable_rules import value_fault
from storage.model import VariableUse
from storage.source import SourceDirectory, SourceEntry, SourceFile, SourceLink

TOKEN = "npm_Zq8/w+3k=Lr5'x$\"T\\y"
KEY = (
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\nAwEHBG0wawIBAQQg7Vbf\n"
    "ab\n-----END PRIVATE KEY-----\n"
)
SPELLINGS = {
    "raw": TOKEN,
    "base64": base64.b64encode(TOKEN.encode()).decode(),
    "base64 of a line": base64.b64encode(f"{TOKEN}\n".encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(TOKEN.encode()).decode(),
    "hexadecimal": TOKEN.encode().hex(),
    "HEXADECIMAL": TOKEN.encode().hex().upper(),
    "hexadecimal as od has it": TOKEN.encode().hex(" "),
    "URL": quote(TOKEN, safe=""),
    "base64 in a URL": quote(base64.b64encode(TOKEN.encode()).decode(), safe=""),
    "each byte escaped": "".join(f"%{byte:02x}" for byte in TOKEN.encode()),
    "HTML": html.escape(TOKEN),
    "JSON": json.dumps(TOKEN)[1:-1],
    "repr": repr(TOKEN)[1:-1],
    "wrapped": "\n".join(textwrap.wrap(base64.b64encode(TOKEN.encode()).decode(), 7)),
    "wrapped as in a mail": "\r\n".join(
        textwrap.wrap(base64.b64encode(TOKEN.encode()).decode(), 7)
    ),
    "in columns": "\t".join(textwrap.wrap(TOKEN.encode().hex(), 4)),
    "shell": TOKEN.replace("'", "'\\''"),
    "shell, by Python": shlex.quote(TOKEN)[1:-1],
    "HTML, by Go": TOKEN.replace("'", "&#39;").replace('"', "&#34;"),
    "XML": TOKEN.replace("'", "&apos;").replace('"', "&quot;"),
    "HTML with its apostrophes": TOKEN.replace('"', "&quot;"),
}


def masked_in_pieces(masker: Masker, data: bytes, size: int) -> bytes:
    stream = masker.stream()
    pieces = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)]
    return b"".join([*pieces, stream.end()])


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_every_spelling_is_masked_in_whole_texts_and_in_pieces(name: str, size: int) -> None:
    masker = Masker({"NPM_TOKEN": TOKEN})
    text = f"before:{SPELLINGS[name]}\nafter"
    shown = masked_in_pieces(masker, text.encode(), size).decode()
    assert SPELLINGS[name] not in shown
    assert shown.startswith("before:***")
    assert shown.endswith("\nafter")
    assert masker.masked(text) == shown


SECRETS = [
    "canary/8f3a+61c $x'\"\u00e9",
    "correct!horse/battery",
    "Tr0ub4dor&3/xyz+Q",
    "~%(a)[b]^|`{c}~",
    "p?q#r s^t",
]
NODE = """
const s = process.argv[1], u = new URL("https://h/");
u.password = s; u.pathname = "/" + s; u.search = "?" + s;
console.log(JSON.stringify([
  encodeURIComponent(s), encodeURI(s), u.password, u.pathname, u.search, u.href,
  new URLSearchParams({s}).toString(), JSON.stringify(s), Buffer.from(s).toString("base64url"),
]));
"""
PHP = (
    "$s = $argv[1]; echo json_encode([rawurlencode($s), urlencode($s), htmlspecialchars($s),"
    " base64_encode($s), http_build_query(['s' => $s]), json_encode($s),"
    " json_encode($s, JSON_HEX_TAG | JSON_UNESCAPED_UNICODE)]);"
)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("encoder", [("node", "-e", NODE, "--"), ("php", "-r", PHP, "--")])
def test_what_languages_make_of_a_secret_is_masked_and_told(encoder, secret: str) -> None:
    """By the languages themselves: `Buffer`, `URL`, `urlencode`, ..."""
    if shutil.which(encoder[0]) is None:
        pytest.skip(f"needs {encoder[0]}")
    ran = subprocess.run([*encoder, secret], capture_output=True, check=True, timeout=60)
    for spelled in json.loads(ran.stdout):
        masker = Masker({"S": secret})
        assert "***" in masker.masked(spelled), spelled
        assert masker.found_in([spelled.encode()]) is not None, spelled


# Source: Go's net/url, `shouldEscape`; URL Standard, "application/x-www-form-urlencoded
# percent-encode set", which Java's URLEncoder has too.
@pytest.mark.parametrize(
    ("spelled", "what"),
    [
        ("p$&+=:@%2C%2F%3B%3Fx%20~%2A", "a segment of a path, by Go"),
        ("p$&+=%3A%40,%2F;%3Fx%20~%2A", "a password, by Go"),
        ("p%24%26%2B%3D%3A%40%2C%2F%3B%3Fx+~%2A", "a query, by Go and PHP"),
        ("p%24%26%2B%3D%3A%40%2C%2F%3B%3Fx+%7E*", "a form, by Java and URLSearchParams"),
        ("p%24%26%2B%3D%3A%40%2C/%3B%3Fx%20~%2A", "a path, by Python"),
    ],
)
def test_what_is_left_as_it_is_in_urls_differs_and_all_of_it_is_masked(spelled, what) -> None:
    masker = Masker({"S": "p$&+=:@,/;?x ~*"})
    assert masker.masked(f"a/{spelled}/b") == "a/***/b", what
    lowered = re.sub("%..", lambda found: found[0].lower(), spelled)
    assert masker.masked(f"a/{lowered}/b") == "a/***/b", what


def test_what_newer_and_older_rules_leave_in_paths_is_masked() -> None:
    """Source: URL Standard, "path percent-encode set": "^" is not in its older versions."""
    masker = Masker({"S": "a[b]|c^d e(f)"})
    assert masker.masked("/a[b]|c%5Ed%20e(f)/") == masker.masked("/a[b]|c^d%20e(f)/") == "/***/"


def test_base64_with_characters_that_urls_escape_is_masked() -> None:
    secret = "xx>>>???~~~"
    encoded = base64.b64encode(secret.encode()).decode()
    assert {"+", "/", "="} <= set(encoded)
    masker = Masker({"S": secret})
    assert masker.masked(quote(encoded, safe="")) == masker.masked(encoded) == "***"


@pytest.mark.parametrize("secret", ["abcd1234", "abcd 1234"])
def test_shortest_secret_that_builds_get_is_masked_and_told(secret: str) -> None:
    assert value_fault(secret, is_secret=True, used_in=VariableUse.BUILD) is None
    masker = Masker({"S": secret})
    assert masker.masked(f"<{secret}>") == "<***>"
    assert masker.found_in([secret.encode()]) is not None


def test_value_that_ends_in_a_line_end_is_masked_without_it_too() -> None:
    """As a shell gives it on: `$(cat)` has no last line end."""
    masker = Masker({"S": "canary-of-tests\n"})
    encoded = base64.b64encode(b"canary-of-tests").decode()
    assert masker.masked(f"{encoded} canary-of-tests") == "***"


def test_text_that_is_no_unicode_is_masked_as_any() -> None:
    masker = Masker({"NPM_TOKEN": TOKEN})
    assert masker.masked(f"\udcff{TOKEN}\udcff") == "\ufffd***\ufffd"


def test_what_go_makes_of_a_secret_in_json_is_masked() -> None:
    """It escapes what HTML would read. Source: encoding/json, `HTMLEscape`."""
    masker = Masker({"S": "Tr0ub4dor&3/<xyz>"})
    assert masker.masked('{"a":"Tr0ub4dor\\u00263/\\u003cxyz\\u003e"}') == '{"a":"***"}'


@pytest.mark.parametrize("before", ["", "u", "u:"])
@pytest.mark.parametrize("after", ["", "z", "zz"])
def test_base64_of_more_than_the_secret_is_masked_but_for_its_ends(before: str, after: str) -> None:
    encoded = base64.b64encode(f"{before}{TOKEN}{after}".encode()).decode()
    first, _, last = Masker({"NPM_TOKEN": TOKEN}).masked(encoded).partition("***")
    assert len(first) <= 3
    assert len(last) <= 6


@settings(deadline=None, max_examples=60)
@given(
    secret=st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="*"), min_size=8
    ),
    around=st.tuples(st.text(max_size=9), st.text(max_size=9)),
    size=st.integers(1, 9),
)
def test_no_cut_lets_a_secret_through(secret: str, around: tuple[str, str], size: int) -> None:
    masker = Masker({"S": secret})
    before, after = (part.encode(errors="replace") for part in around)
    data = before + secret.encode() + after
    shown = masked_in_pieces(masker, data, size)
    assert b"***" in shown
    assert secret.encode() not in shown


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.integers(1, 9))
def test_what_is_no_secret_stays_as_it_is(data: bytes, size: int) -> None:
    masker = Masker({"S": "correct horse battery staple"})
    assert masked_in_pieces(masker, data, size) == data
    assert masked_in_pieces(Masker(), data, size) == data


def test_white_space_without_end_is_not_held_and_lets_no_part_of_a_secret_through() -> None:
    """A line for each of its characters, and more of nothing between them than anybody keeps."""
    stream = Masker({"NPM_TOKEN": TOKEN}).stream()
    space = b"\n" * (HELD_BYTES_MAX // 2)
    shown = []
    for byte in TOKEN.encode():
        shown += [stream.feed(bytes([byte])), *(stream.feed(space) for _ in range(3))]
        assert MASK in b"".join(shown), "it is not held until the end"
    shown += [stream.feed(b"after"), stream.end()]
    assert b"".join(shown).replace(MASK, b"").strip() == b"after"


def test_what_was_masked_as_the_beginning_of_a_secret_and_is_none_is_followed_by_the_rest() -> None:
    stream = Masker({"NPM_TOKEN": TOKEN}).stream()
    shown = [stream.feed(b"one np"), stream.feed(b"\n" * 2 * HELD_BYTES_MAX), stream.feed(b"npx!")]
    assert b"".join([*shown, stream.end()]) == b"one ***npx!"


@settings(deadline=None, max_examples=100)
@given(
    secret=st.text("abcd/+", min_size=8, max_size=20),
    parts=st.lists(st.text("WXYZ \n", max_size=6), min_size=2, max_size=4),
    gaps=st.lists(st.integers(0, 12), min_size=20, max_size=20),
    size=st.integers(1, 9),
)
def test_letting_go_shows_nothing_of_a_secret_and_all_of_the_rest(
    secret: str, parts: list[str], gaps: list[int], size: int
) -> None:
    stretched = "".join(
        char + " " * gap for char, gap in zip(secret, gaps[: len(secret)], strict=True)
    )
    data = stretched.join(parts).encode()
    stream = MaskedStream(Masker({"S": secret}), held_bytes_max=8)
    pieces = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)]
    shown = b"".join([*pieces, stream.end()])
    assert shown.count(MASK) >= 1
    rest = "".join(parts).encode().translate(None, b" \n")
    assert shown.replace(MASK, b"").translate(None, b" \n") == rest


@pytest.mark.parametrize(
    "entry",
    [
        SourceLink(b"x", TOKEN.encode()),
        SourceLink(TOKEN.encode(), b"x"),
        SourceDirectory(TOKEN.encode()),
        SourceFile(TOKEN.encode(), 0, executable=False, read=lambda: b""),
        SourceFile(b"x", 23, executable=False, read=TOKEN.encode),
    ],
)
def test_secret_in_a_name_a_target_or_contents_is_refused_and_not_told(entry: SourceEntry) -> None:
    masker = Masker({"NPM_TOKEN": TOKEN})
    with pytest.raises(BuildFailedError, match="holds the secret NPM_TOKEN, as it is") as caught:
        refuse_secrets([SourceLink(b"a", b"b"), entry], masker, is_stopped=lambda: False)
    assert caught.value.code == "build.secret_in_output"
    assert TOKEN not in str(caught.value)


def test_looking_for_secrets_stops_within_a_file() -> None:
    read = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            read.append(number)
            yield bytes(100)

    file = SourceFile(b"big", 100_000, executable=False, read=pieces)
    masker = Masker({"NPM_TOKEN": TOKEN})
    refuse_secrets([file], masker, is_stopped=lambda: len(read) >= 5)
    assert len(read) == 5
    refuse_secrets([file], masker, is_stopped=lambda: False)
    assert len(read) == 1005


def test_what_a_host_may_be_named_is_masked_in_lower_case_too_and_makes_no_file_a_leak() -> None:
    masker = Masker({"S": "Canary_7D1f-Zq9"})
    encoded = base64.b64encode(b"Canary_7D1f-Zq9").decode()
    for spelled in ("canary_7d1f-zq9", encoded.lower()):
        assert "***" in masker.masked(f"https://{spelled}.example/"), spelled
        assert masker.found_in([spelled.encode()]) is None, spelled
    assert Masker({"S": TOKEN}).masked(TOKEN.lower()) == TOKEN.lower()  # in no host's name


def test_lines_of_a_key_are_masked_one_by_one_and_its_armour_is_not() -> None:
    masker = Masker({"KEY": KEY})
    assert masker.masked(KEY) == "***\n"
    assert masker.masked("MIGHAgEAMBMGByqGSM49AgEGCCqGSM49") == "***"
    assert masker.masked("-----BEGIN PRIVATE KEY-----") == "-----BEGIN PRIVATE KEY-----"
    assert masked_in_pieces(masker, f"a\n{KEY}z".encode(), 6) == b"a\n***\nz"


@pytest.mark.parametrize("name", SPELLINGS)
def test_file_that_holds_a_secret_is_told_whatever_its_pieces(name: str) -> None:
    masker = Masker({"OTHER": "another secret", "NPM_TOKEN": TOKEN})
    data = f"{'x' * 50}{SPELLINGS[name]}{'y' * 50}".encode()
    for size in (1, 13, 1000):
        form = masker.found_in(data[at : at + size] for at in range(0, len(data), size))
        assert form is not None
        assert form.name == "NPM_TOKEN"
    assert masker.found_in([b"nothing", b"of it"]) is None
    other = masker.found_in([b"x another secret x"])
    assert other is not None
    assert other.name == "OTHER"


def test_armour_and_single_lines_do_not_make_a_file_a_leak() -> None:
    masker = Masker({"KEY": KEY})
    assert (
        masker.found_in([b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49"]) is None
    )
    assert masker.found_in([b"const key = `" + KEY.encode()]) is not None


def test_secret_that_is_a_line_of_another_is_told_too() -> None:
    masker = Masker({"KEY": KEY, "LINE": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49"})
    found = masker.found_in([b"x MIGHAgEAMBMGByqGSM49AgEGCCqGSM49 x"])
    assert found is not None
    assert found.name == "LINE"


def test_secrets_show_in_no_repr() -> None:
    masker = Masker({"NPM_TOKEN": TOKEN})
    stream = masker.stream()
    assert stream.feed(TOKEN[:-1].encode()) == b""
    for shown in (repr(masker), repr(stream)):
        assert TOKEN[:6] not in shown
