"""No secret survives, however the text is cut; everything else does."""

from __future__ import annotations

import base64
import itertools
import json
import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.redactor import LONGEST_KEY_LINES, LONGEST_LINE, Redactor, find_shapes, secret_values
from store.token_files import new_token

VALUE = 'hunter2 "quoted" / käse?'
SECRETS = {"MY_TOKEN": VALUE, "OTHER": "plain-other-value"}
TOKENS = {
    "anthropic-key": "sk-ant-api03-" + "a1B2" * 10,
    "api-key": "sk-proj-" + "a1B2" * 10,
    "github-token": "ghp_" + "a1B2" * 9,
    "gitlab-token": "glpat-" + "a1B2" * 6,
    "aws-key": "AKIA" + "A1B2" * 4,
    "slack-token": "xoxb-" + "1234567890-abcdef",
    "google-key": "AIza" + "a1B2c" * 7,
    "npm-token": "npm_" + "a1B2" * 9,
    "gigafactory-token": "gfu_" + "a1B2-_" * 7 + "x",
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "a1B2" * 8,
}
OWN_TOKENS = [new_token(prefix) for prefix in ("gfu_", "gff_", "gfe_", "gft_") for _ in range(25)]
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nq83vEjRWeJ\n-----END RSA PRIVATE KEY-----\n"


def redacted(text: str, cuts: list[int] | None = None) -> str:
    """Feed `text` in the pieces that `cuts` make."""
    redactor = Redactor(SECRETS)
    places = [0, *sorted({min(cut, len(text)) for cut in cuts or []}), len(text)]
    out = [redactor.feed(text[start:end]) for start, end in itertools.pairwise(places)]
    return "".join(out) + redactor.close()


@pytest.mark.parametrize(("kind", "token"), TOKENS.items())
def test_well_known_tokens_are_named_and_gone(kind: str, token: str) -> None:
    """Each shape is replaced by its kind, in the middle of a line too."""
    assert redacted(f"a {token}, b\n") == f"a [redacted:{kind}], b\n"


@pytest.mark.parametrize(
    "text",
    [
        "task-force ask-me disk-usage\n",
        "git clone https://example.org/repo.git\n",
        "sha256 4b825dc642cb6eb9a060e54bf8d69288fbee4904\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "eyJ is how a JWT starts; ghp_short; AKIA too\n",
        "no end",
        "\n\n",
        "",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """What is no secret comes out as it went in."""
    assert redacted(text) == text


@pytest.mark.parametrize(
    "spelling",
    [VALUE, quote(VALUE, safe=""), json.dumps(VALUE)[1:-1], base64.b64encode(VALUE.encode()).decode().rstrip("=")],
)
def test_known_values_go_in_common_encodings(spelling: str) -> None:
    """A value is found as it is, percent-encoded, in JSON and in base64."""
    assert redacted(f"x={spelling};\n") == "x=[redacted:MY_TOKEN];\n"


def test_password_in_a_url_goes() -> None:
    """User and password of a URL go, the host stays."""
    assert redacted("https://ada:tops3cret@git.example.org/x\n") == "https://[redacted:password]@git.example.org/x\n"
    document = json.dumps({"home": "http://a", "mail": "b:c@d"})
    assert json.loads(redacted(document)) == json.loads(document), "the structure around URLs is no password"


def test_private_key_block_goes_whole() -> None:
    """Everything between the marks goes; the text around it stays."""
    assert redacted(f"before\n{KEY}after\n") == "before\n[redacted:private-key]\n\nafter\n"
    one_line = KEY.replace("\n", " ").strip()
    assert redacted(f"key: {one_line} end\n") == "key: [redacted:private-key] end\n"


def test_key_that_never_ends_hides_a_bounded_part() -> None:
    """A stray opening mark cannot silence a log for ever."""
    text = "-----BEGIN PRIVATE KEY-----\n" + "line\n" * (LONGEST_KEY_LINES + 5)
    assert redacted(text).endswith("line\n")


def test_several_lines_of_one_value_go_line_by_line() -> None:
    """A value of several lines is found although logs come line by line."""
    redactor = Redactor({"PEM": "first-line-is-long-enough\nsecond-line-is-long-enough"})
    assert redactor.redact("a first-line-is-long-enough b") == "a [redacted:PEM] b"


@pytest.mark.parametrize("before", [0, 10, LONGEST_LINE - 4100, LONGEST_LINE - 4096, LONGEST_LINE - 20, LONGEST_LINE])
def test_endless_line_is_given_out_without_tearing_a_secret(before: int) -> None:
    """A line without an end is given out in pieces, and a token across the cut is still found."""
    token = TOKENS["github-token"]
    text = "." * before + token + "." * LONGEST_LINE
    assert redacted(text) == "." * before + "[redacted:github-token]" + "." * LONGEST_LINE
    redactor = Redactor(SECRETS)
    assert redactor.feed(text), "nothing was given out although the line is endless"


PIECES = st.one_of(
    st.sampled_from([*TOKENS.values(), VALUE, SECRETS["OTHER"], KEY, "\n", " ", "https://u:secret-pw@h/"]),
    st.text(alphabet=string.printable, max_size=40),
)


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 1500), max_size=25))
def test_output_does_not_depend_on_the_cuts(pieces: list[str], cuts: list[int]) -> None:
    """However a text arrives, the same text is given out."""
    text = "".join(pieces)
    assert redacted(text, cuts) == redacted(text)


@given(
    st.text(alphabet=" ab\n=:", max_size=60),
    st.sampled_from([*TOKENS.values(), VALUE, SECRETS["OTHER"]]),
    st.text(alphabet=" \n,;", min_size=1, max_size=60),
    st.lists(st.integers(0, 300), max_size=20),
)
def test_secret_never_survives_any_split(before: str, secret: str, after: str, cuts: list[int]) -> None:
    """A token or value is gone, wherever the chunks end."""
    out = redacted(f"{before} {secret}{after}", cuts)
    assert secret not in out
    assert "[redacted:" in out


@given(st.lists(st.text(alphabet=string.ascii_lowercase + " .\t", max_size=80), max_size=20))
def test_harmless_lines_survive(lines: list[str]) -> None:
    """Nothing is lost, doubled or changed."""
    text = "\n".join(lines)
    assert redacted(text, [3, 7, 20, 50]) == text


def test_secret_variables_are_told_by_their_names() -> None:
    """Names decide; paths, sockets and short values are no secrets."""
    environ = {
        "ANTHROPIC_API_KEY": "x" * 20,
        "DB_PASSWORD": "longenough",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "TOKEN_FILE": "/run/token",
        "MY_TOKEN": "tiny",
        "PATH": "/usr/bin:/bin",
    }
    assert set(secret_values(environ)) == {"ANTHROPIC_API_KEY", "DB_PASSWORD"}


def test_only_sure_shapes_keep_a_file_from_being_pushed() -> None:
    """Tokens and keys do; JWTs and URLs with a password, common in test data, do not."""
    assert find_shapes(f"x {TOKENS['github-token']} {TOKENS['aws-key']} {KEY}") == (
        "private-key", "github-token", "aws-key",
    )  # fmt: skip
    assert find_shapes(f"{TOKENS['jwt']} https://ada:tops3cret@example.org") == ()


@pytest.mark.req("S1", "S2")
def test_tokens_of_every_role_are_recognised() -> None:
    """Whatever token we make is taken out of text and keeps a file from being pushed; the first version's too."""
    for token in (*OWN_TOKENS, "gf_" + "a1B2-_" * 7 + "x"):
        assert redacted(f"Authorization: Bearer {token}\n") == "Authorization: Bearer [redacted:gigafactory-token]\n"
        assert find_shapes(f'{{"token": "{token}"}}') == ("gigafactory-token",)


def test_names_in_a_source_are_no_tokens() -> None:
    """A long name that happens to begin like the first version's tokens stays, and so do the prefixes alone."""
    for text in ("gf_run_with_two_factories_goes_on_when_one_of_them_is_killed", "gfu_ gff_ gf_", "gff_" + "x" * 42):
        assert redacted(text + "\n") == text + "\n"
