"""The types of fields in job files and profiles: what each accepts, and what it says when it refuses. *Pure.*

In files every value is text (`core.front_matter`), in JSON it may be a number or a boolean; the types take both. Each
refusal is a pydantic error with `expected` and `suggestion`, which `core.field_problems` turns into one `FieldProblem`.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from core import quantities
from core.capability import parse_requirement
from core.quantities import kind_of
from core.scope import GlobError, check_glob

DAY_S = 86_400
ItemT = TypeVar("ItemT")


def refuse(message: str, *, expected: str = "", suggestion: str = "") -> PydanticCustomError:
    """Return the error by which a field type refuses its value."""
    context = {"problem": message, "expected": expected, "suggestion": suggestion}
    return PydanticCustomError("field", "{problem}", context)


def nearest(value: str, options: Iterable[str]) -> str:
    """Return the option that is most likely meant by `value`, or an empty text."""
    choices = {option.lower(): option for option in options}
    plain = value.strip().lower().replace("_", "-")
    close = difflib.get_close_matches(plain, choices, n=1, cutoff=0.65)
    begun = [option for option in choices if len(plain) > 2 and (option.startswith(plain) or plain.startswith(option))]
    best = (*close, *begun)
    return choices[best[0]] if best else ""


def listed(options: Iterable[str]) -> str:
    """Return options as people read them: `a, b or c`."""
    names = list(options)
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


def written(value: object, expected: str) -> str:
    """Return a text value without blanks around it; a JSON number counts as its digits.

    Raises:
        PydanticCustomError: a boolean, a list, a mapping or nothing.

    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise refuse(f"is {kind_of(value)}", expected=expected)
    return value.strip()


# --- text -------------------------------------------------------------------------------------------------------------


def _pattern(pattern: str, expected: str, repair: Callable[[str], str] = lambda _: "") -> Callable[[object], str]:
    """Return a check of a text against `pattern`; `repair` makes the suggestion, kept only if it fits itself."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: object) -> str:
        text = written(value, expected)
        if not compiled.fullmatch(text):
            near = repair(text)
            raise refuse("is not valid", expected=expected, suggestion=near if compiled.fullmatch(near) else "")
        return text

    return check


def _kebab(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _label(longest: int) -> Callable[[object], str]:
    expected = f"one line of text, at most {longest} characters"

    def check(value: object) -> str:
        text = written(value, expected)
        if not text:
            raise refuse("is empty", expected=expected)
        if len(text) > longest:
            raise refuse(f"has {len(text)} characters", expected=expected)
        if not text.isprintable():
            raise refuse("has line breaks or control characters", expected=expected)
        return text

    return check


def _command(value: object) -> str:
    expected = "a shell command line"
    if not isinstance(value, str):
        raise refuse(f"is {kind_of(value)}", expected=expected)
    if not value.strip():
        raise refuse("is empty", expected=f"{expected}; [] for no command at all")
    if "\0" in value:
        raise refuse("contains a NUL character", expected=expected)
    return value.strip()


NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
NAME_EXPECTED = "lower-case letters, digits, `-`, `_` and `.`, at most 63 characters"
SLUG = r"[a-z0-9][a-z0-9-]{0,62}"
SLUG_EXPECTED = "lower-case letters, digits and `-`, at most 63 characters"
KEY = r"[!-~]{1,200}"
KEY_EXPECTED = "1 to 200 visible ASCII characters without blanks"

Name = Annotated[
    str,
    BeforeValidator(_pattern(NAME, NAME_EXPECTED, _kebab)),
    WithJsonSchema({"type": "string", "pattern": f"^{NAME}$"}),
]
Slug = Annotated[
    str,
    BeforeValidator(_pattern(SLUG, SLUG_EXPECTED, _kebab)),
    WithJsonSchema({"type": "string", "pattern": f"^{SLUG}$"}),
]
Key = Annotated[
    str,
    BeforeValidator(_pattern(KEY, KEY_EXPECTED, lambda text: re.sub(r"\s+", "-", text))),
    WithJsonSchema({"type": ["string", "integer"], "pattern": f"^{KEY}$"}),
]
Label = Annotated[
    str, BeforeValidator(_label(200)), WithJsonSchema({"type": ["string", "integer"], "minLength": 1, "maxLength": 200})
]
Title = Annotated[
    str, BeforeValidator(_label(72)), WithJsonSchema({"type": ["string", "integer"], "minLength": 1, "maxLength": 72})
]
Command = Annotated[str, BeforeValidator(_command), WithJsonSchema({"type": "string", "minLength": 1})]

JOB_REFERENCE = rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,63}}|key:{KEY}"
job_reference = _pattern(JOB_REFERENCE, "the id of a job, or key: and the idempotency-key of one")
"""Checks how a job names another one, and returns the text."""


# --- choices and switches ---------------------------------------------------------------------------------------------


def one_of(options: Iterable[str]) -> Callable[[object], str]:
    """Return a check that a text is one of `options`."""
    choices = tuple(options)
    expected = listed(choices)

    def check(value: object) -> str:
        text = value.strip() if isinstance(value, str) else ""
        if text not in choices:
            problem = "is not a choice" if text else f"is {'empty' if value == '' else kind_of(value)}"
            raise refuse(problem, expected=expected, suggestion=nearest(text, choices))
        return text

    return check


def members(enum: type[StrEnum]) -> tuple[str, ...]:
    """Return the values of an enumeration in their order."""
    return tuple(member.value for member in enum)


_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in _SWITCH:
        near = {"y": "true", "t": "true", "1": "true", "n": "false", "f": "false", "0": "false"}.get(text, "")
        raise refuse("is not a choice", expected="true or false", suggestion=near or nearest(text, _SWITCH))
    return _SWITCH[text]


Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema({"enum": [True, False, *_SWITCH]})]


# --- quantities -------------------------------------------------------------------------------------------------------


def _quantity(parse: Callable[[object], ItemT]) -> Callable[[object], ItemT]:
    def check(value: object) -> ItemT:
        try:
            return parse(value.strip() if isinstance(value, str) else value)
        except quantities.QuantityError as error:
            raise refuse(error.message, expected=error.expected, suggestion=error.suggestion) from None

    return check


def _seconds(least: int, most: int) -> Callable[[object], int]:
    return _quantity(lambda value: quantities.parse_seconds(value, least=least, most=most))


def _backoff(value: object) -> Decimal:
    seconds = quantities.parse_duration(value)
    quantities.check_range(seconds, 0, 3600)
    return seconds


def _tokens(value: object) -> int:
    count = quantities.parse_count(value)
    if count < 1:
        raise quantities.QuantityError("is too small", expected=f"at least 1; {quantities.COUNT_EXPECTED}")
    return count


def _usd(value: object) -> Decimal:
    amount = quantities.parse_usd(value)
    if amount <= 0:
        raise quantities.QuantityError("is too small", expected=f"more than 0; {quantities.USD_EXPECTED}")
    return amount


def _schema_of(example: str, what: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "description": what, "examples": [example]})


Seconds = Annotated[
    int,
    BeforeValidator(_seconds(1, 30 * DAY_S)),
    PlainSerializer(quantities.format_duration, when_used="json"),
    _schema_of("45m", quantities.DURATION_EXPECTED),
]
Backoff = Annotated[
    Decimal,
    BeforeValidator(_quantity(_backoff)),
    PlainSerializer(quantities.format_duration, when_used="json"),
    _schema_of("5m", quantities.DURATION_EXPECTED),
]
Tokens = Annotated[
    int,
    BeforeValidator(_quantity(_tokens)),
    PlainSerializer(quantities.format_count, when_used="json"),
    _schema_of("2M", quantities.COUNT_EXPECTED),
]
Usd = Annotated[
    Decimal,
    BeforeValidator(_quantity(_usd)),
    PlainSerializer(quantities.format_usd, when_used="json"),
    _schema_of("$5", quantities.USD_EXPECTED),
]


def whole(least: int, most: int) -> BeforeValidator:
    """Return the check of a whole number from `least` to `most`."""
    return BeforeValidator(_quantity(lambda value: quantities.parse_whole(value, least=least, most=most)))


Retries = Annotated[int, whole(0, 100), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 100})]
WEIGHT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 1000}
Weight = Annotated[int, whole(0, 1000), WithJsonSchema(WEIGHT)]
Version = Annotated[int, whole(1, 1_000_000), WithJsonSchema({"type": "integer", "minimum": 1})]


# --- places -----------------------------------------------------------------------------------------------------------

_CWD_EXPECTED = "a directory: absolute, or relative to the job file"
_REPO_EXPECTED = (
    "a git URL (https://…, ssh://…, git@host:path), a path that begins with / or ., or scratch:<name> for a scratch "
    "repository"
)
_SCHEMES = ("https", "ssh", "http", "git", "file")
_SCP_LIKE = re.compile(
    r"(?!(?:https?|ssh|git|file|ext|scratch):)(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]+:[^\s:]\S*"
)
SCRATCH = "scratch:"
"""Prefix of the repositories that are made on demand under the stack's home."""


def _directory(value: object, info: ValidationInfo) -> str:
    text = written(value, _CWD_EXPECTED)
    if not text or not text.isprintable():
        raise refuse("is empty" if not text else "has control characters", expected=_CWD_EXPECTED)
    return _absolute(text, info, _CWD_EXPECTED)


def _absolute(path: str, info: ValidationInfo, expected: str) -> str:
    """Return `path` made absolute by the `base_dir` and `home_dir` of the validation context."""
    context: dict[str, str] = info.context or {}
    if path == "~" or path.startswith("~/"):
        home = context.get("home_dir", "")
        if not home:
            raise refuse("begins with ~", expected="an absolute path; ~ is known to the command line only")
        path = home + path[1:]
    if re.match(r"[A-Za-z]:[\\/]", path) or path.startswith("\\\\"):
        return path
    if not path.startswith("/"):
        base = context.get("base_dir", "")
        if not base:
            raise refuse("is relative", expected=f"{expected}; here is no file to be relative to")
        path = posixpath.join(base, path)
    normal = posixpath.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def _repository(value: object, info: ValidationInfo) -> str:
    text = written(value, _REPO_EXPECTED)
    if not text or not text.isprintable():
        raise refuse("is empty" if not text else "has control characters", expected=_REPO_EXPECTED)
    if text.startswith(SCRATCH):
        return _scratch(text)
    if text in {".", "..", "~"} or re.match(r"(?:/|\./|\.\./|~/|[A-Za-z]:[\\/]|\\\\)", text):
        return _absolute(text, info, _REPO_EXPECTED)
    if match := re.fullmatch(r"([A-Za-z0-9+.-]+)://(?:([^/@\s]*)@)?([^/@\s]+)?(/\S*)?", text):
        return _url(text, match[1], match[2] or "", match[3] or "", match[4] or "")
    if _SCP_LIKE.fullmatch(text):
        return text
    bare = re.fullmatch(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+/\S+", text)
    raise refuse("is not a repository", expected=_REPO_EXPECTED, suggestion=f"https://{text}" if bare else "")


def _scratch(text: str) -> str:
    name = text.removeprefix(SCRATCH)
    if not re.fullmatch(SLUG, name):
        near = _kebab(name)
        raise refuse(
            "is not a scratch repository",
            expected=f"scratch:<name>, the name of {SLUG_EXPECTED}",
            suggestion=f"{SCRATCH}{near}" if re.fullmatch(SLUG, near) else "",
        )
    return text


def _url(text: str, scheme: str, user: str, host: str, path: str) -> str:
    """Check a URL with a scheme: one that git itself speaks, and no secret in it."""
    if scheme not in _SCHEMES:
        near = nearest(scheme.removeprefix("git+"), _SCHEMES)
        raise refuse(
            f"has the scheme {scheme}, which is not supported",
            expected=_REPO_EXPECTED,
            suggestion=f"{near}://{text.partition('://')[2]}" if near and not user else "",
        )
    if ":" in user or (user and scheme in {"http", "https"}):
        raise refuse("has credentials in the URL", expected="a URL without them; credentials live on the factories")
    if (not host and scheme != "file") or len(path.strip("/")) == 0 or host.startswith("-") or user.startswith("-"):
        raise refuse("is not a repository", expected=_REPO_EXPECTED)
    return text


_BRANCH_EXPECTED = "the name of a branch, such as main or release/2.1"


def _branch(value: object) -> str:
    text = written(value, _BRANCH_EXPECTED)
    near = text.removeprefix("refs/heads/")
    wrong = (
        not text
        or not re.fullmatch(r"[^\s~^:?*\[\\\x00-\x20\x7f]{1,200}", text)
        or text.startswith(("-", "/", ".", "refs/"))
        or text.endswith(("/", ".", ".lock"))
        or any(bad in text for bad in ("..", "//", "@{", "/.", ".lock/"))
        or text in {"@", "HEAD"}
    )
    if wrong:
        raise refuse("is not a branch", expected=_BRANCH_EXPECTED, suggestion=near if near != text else "")
    return text


Directory = Annotated[str, BeforeValidator(_directory), WithJsonSchema({"type": "string", "minLength": 1})]
RepositoryUrl = Annotated[str, BeforeValidator(_repository), WithJsonSchema({"type": "string", "minLength": 1})]
Branch = Annotated[str, BeforeValidator(_branch), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200})]


# --- lists ------------------------------------------------------------------------------------------------------------


def as_list(value: object) -> object:
    """Return a single text as a list of one; lists as they are."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise refuse(f"is {kind_of(value)}", expected="a list, or one text")
    return value


def as_mapping(value: object) -> object:
    """Return a mapping as it is."""
    if not isinstance(value, dict):
        raise refuse(f"is {kind_of(value)}", expected="a mapping, such as {load: 0}")
    return value


def distinct(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    """Return the items without repetitions, in their order."""
    return tuple(dict.fromkeys(items))


def some(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
    """Return the items if there are any."""
    if not items:
        raise refuse("is an empty list", expected="at least one; leave the field out for none")
    return items


def _capability(value: object) -> str:
    expected = "a tag (os:linux, has:docker), a name (gpu) or a range (node>=20)"
    text = written(value, expected)
    try:
        return parse_requirement(text).text
    except ValueError as error:
        detail = str(error).partition("; ")[2].removeprefix("expected ").removeprefix("write ")
        near = re.sub(r"^([A-Za-z][\w.-]*)\s*(?:=>|=)\s*(?=[0-9])", r"\1>=", text)
        raise refuse(
            "is not a capability", expected=detail or expected, suggestion=near if near != text else ""
        ) from None


def _glob(value: object) -> str:
    text = written(value, "a glob such as docs/** or **/*.md")
    try:
        return check_glob(text)
    except GlobError as error:
        raise refuse(error.message, expected=error.expected, suggestion=error.suggestion) from None


def one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    """Return the JSON Schema of a list of `item` that may be written as a single one."""
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item}]})


_TEXT = {"type": "string", "minLength": 1}
CapabilityName = Annotated[str, BeforeValidator(_capability)]
Glob = Annotated[str, BeforeValidator(_glob)]

Names = Annotated[
    tuple[Name, ...],
    BeforeValidator(as_list),
    AfterValidator(distinct),
    one_or_more({"type": "string", "pattern": f"^{NAME}$"}),
]
Labels = Annotated[tuple[Label, ...], BeforeValidator(as_list), AfterValidator(distinct), one_or_more(_TEXT)]
Commands = Annotated[tuple[Command, ...], BeforeValidator(as_list), one_or_more(_TEXT)]
Capabilities = Annotated[
    tuple[CapabilityName, ...], BeforeValidator(as_list), AfterValidator(distinct), one_or_more(_TEXT)
]
Globs = Annotated[
    tuple[Glob, ...], BeforeValidator(as_list), AfterValidator(distinct), AfterValidator(some), one_or_more(_TEXT)
]
