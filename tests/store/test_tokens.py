"""Tokens in the ledger, on both kinds of database; and the book that every process keeps of them."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, text

from core.access import Access
from core.errors import Conflict, NotFound, Unauthenticated, Unavailable
from core.roles import Role
from core.settings import Settings
from core.tokens import digest_of
from store import open_ledger, token_book
from store.database import open_database
from store.ledger import Ledger
from store.messages import NewToken
from store.token_book import TokenBook, new_token_id
from store.token_files import (
    ensure_factory_token,
    ensure_person_token,
    factory_token_file,
    is_trustworthy,
    new_token,
    person_token_file,
    write_token,
)
from store.views import TokenRow
from tests.store.fleet import START, Fleet

HOUR = timedelta(hours=1)
VIEWER = Access(roles=(Role.VIEWER,))
AS_FACTORY = Access(roles=(Role.FACTORY,))
TO_ENROL = Access(roles=(Role.ENROLMENT,))


def fresh(secret: str | None = None, access: Access = VIEWER, **values: Any) -> NewToken:
    """Return a token to be taken in."""
    return NewToken(
        id=new_token_id(),
        sha256=digest_of(secret or secrets.token_hex()),
        access=access,
        **({"name": "ada"} | values),
    )


async def made(fleet: Fleet, secret: str | None = None, access: Access = VIEWER, **values: Any) -> TokenRow:
    """Take a token in."""
    return await fleet.ledger.create_token(fresh(secret, access, **values), "tess", fleet.now)


async def audited(fleet: Fleet) -> list[tuple[str, str]]:
    """Return type and subject of every line of the audit log."""
    return [(line.type, line.subject) for line in await fleet.ledger.audit()]


# --- the ledger -------------------------------------------------------------------------------------------------------


async def test_token_is_kept_as_it_was_made(fleet: Fleet) -> None:
    """Roles, products, times and who made it come back; a token for one product belongs to that product."""
    access = Access(roles=(Role.OPERATOR, Role.REVIEWER), products=("shop",))
    row = await made(fleet, access=access, expires_at=START + HOUR)

    assert await fleet.ledger.token(row.id) == row
    assert (row.access, row.product_id, row.created_by, row.created_at) == (access, "shop", "tess", START)
    assert (await made(fleet)).product_id == "*"
    with pytest.raises(NotFound, match="t-none"):
        await fleet.ledger.token("t-none")


async def test_token_opens_until_it_expires_or_is_revoked(fleet: Fleet) -> None:
    """The list has what opens; with `ended` everything that ever did."""
    short = await made(fleet, expires_at=START + HOUR)
    lasting, gone = await made(fleet), await made(fleet)
    await fleet.ledger.revoke_token(gone.id, "lost", "tess", fleet.now)

    assert {row.id for row in await fleet.ledger.tokens(fleet.now)} == {short.id, lasting.id}
    fleet.tick(3600)
    assert {row.id for row in await fleet.ledger.tokens(fleet.now)} == {lasting.id}
    assert {row.id for row in await fleet.ledger.tokens(fleet.now, ended=True)} == {short.id, lasting.id, gone.id}


async def test_revoked_token_stays_as_it_was_revoked(fleet: Fleet) -> None:
    """A second revocation changes neither time nor reason, and leaves no second line."""
    row = await made(fleet)
    first = await fleet.ledger.revoke_token(row.id, "lost", "tess", fleet.tick())
    again = await fleet.ledger.revoke_token(row.id, "found", "bob", fleet.tick())

    assert again == first
    assert first.reason == "lost"
    assert await audited(fleet) == [("token.created", row.id), ("token.revoked", row.id)]


async def rotated(fleet: Fleet, token_id: str, *, grace: timedelta = HOUR, now: datetime | None = None) -> TokenRow:
    """Rotate a token."""
    return await fleet.ledger.rotate_token(
        token_id,
        new_id=new_token_id(),
        sha256=secrets.token_hex(),
        grace=grace,
        expires_at=None,
        actor="tess",
        now=now or fleet.now,
    )


async def test_rotation_gives_the_old_token_a_grace_and_no_longer_life(fleet: Fleet) -> None:
    """A token that would end before the grace still ends then."""
    lasting, short = await made(fleet), await made(fleet, expires_at=START + HOUR / 2)
    for row, end in ((lasting, START + HOUR), (short, START + HOUR / 2)):
        new = await rotated(fleet, row.id)
        old = await fleet.ledger.token(row.id)
        assert (old.expires_at, old.successor, new.access, new.name) == (end, new.id, row.access, row.name)


@pytest.mark.parametrize("why", ["revoked", "expired", "has a successor", "enrolment"])
async def test_rotation_of_what_cannot_go_on_is_refused(fleet: Fleet, why: str) -> None:
    """What opens nothing, was replaced, or works once anyway gets no successor."""
    row = await made(fleet, access=TO_ENROL if why == "enrolment" else VIEWER, expires_at=START + HOUR)
    if why == "revoked":
        await fleet.ledger.revoke_token(row.id, "", "tess", fleet.now)
    if why == "expired":
        fleet.tick(3600)
    if why == "has a successor":
        await rotated(fleet, row.id)

    with pytest.raises(Conflict, match=row.id):
        await rotated(fleet, row.id)


async def test_rotations_at_once_have_one_winner(fleet: Fleet) -> None:
    """Of several operators who rotate the same token one gets the new one."""
    row = await made(fleet)
    answers = await asyncio.gather(*(rotated(fleet, row.id) for _ in range(6)), return_exceptions=True)

    assert sum(isinstance(answer, TokenRow) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 5


@pytest.mark.req("F3")
async def test_enrolments_with_one_token_at_once_make_one_factory(fleet: Fleet) -> None:
    """An enrolment token is spent by the transaction that makes the factory's token."""
    spent = await made(fleet, access=TO_ENROL, expires_at=START + HOUR)
    answers = await asyncio.gather(
        *(fleet.ledger.enrol(spent.id, ("mac-1", "mac-2"), fresh(access=AS_FACTORY), {}, fleet.now) for _ in range(6)),
        return_exceptions=True,
    )

    (row,) = [answer for answer in answers if isinstance(answer, TokenRow)]
    assert (row.factory, row.name, row.created_by) == ("mac-1", "mac-1", "tess")
    assert sum(isinstance(answer, Unauthenticated) for answer in answers) == 5


@pytest.mark.req("F3", "F10")
async def test_enrolments_at_once_never_share_a_name(fleet: Fleet) -> None:
    """Machines that come together and would like the same names get different ones; with none left it is a conflict."""
    await fleet.factory("mac-0")
    spent = [await made(fleet, access=TO_ENROL, expires_at=START + HOUR) for _ in range(4)]
    names = ("mac-0", "mac-1", "mac-2", "mac-3")
    answers = await asyncio.gather(
        *(fleet.ledger.enrol(row.id, names, fresh(access=AS_FACTORY), {}, fleet.now) for row in spent),
        return_exceptions=True,
    )

    taken = sorted(answer.factory or "" for answer in answers if isinstance(answer, TokenRow))
    assert taken == ["mac-1", "mac-2", "mac-3"]
    assert sum(isinstance(answer, Conflict) for answer in answers) == 1


@pytest.mark.req("S3")
@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit"])
async def test_audit_log_cannot_be_changed(fleet: Fleet, statement: str) -> None:
    """The database itself refuses to change or delete a line."""
    await made(fleet)

    with pytest.raises(Exception, match="append-only"):
        await in_database(fleet.url, statement)


@pytest.mark.req("S3")
async def test_edit_of_the_audit_log_past_the_database_is_seen(fleet: Fleet, own_schema: None) -> None:
    """Whoever takes the guard away and edits a line breaks the chain there."""
    for _ in range(3):
        await made(fleet)
    assert (await fleet.ledger.check_audit()).ok
    postgres = fleet.url.startswith("postgresql")
    await in_database(
        fleet.url,
        "DROP TRIGGER audit_no_update ON audit" if postgres else "DROP TRIGGER audit_no_update",
        "UPDATE audit SET actor = 'eve' WHERE seq = 2",
    )

    report = await fleet.ledger.check_audit()
    assert (report.ok, report.broken_at) == (False, 2)


async def in_database(url: str, *statements: str) -> None:
    """Run statements as somebody with the database's own tools would."""

    def run(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement))

    database = open_database(url)
    try:
        await database.write(run)
    finally:
        await database.close()


# --- the book ---------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


class CountingLedger:
    """Passes reads on, counts them, and is away when told so."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.reads = 0
        self.away = False

    async def token_changes(self, after: int, now: datetime, sha256: str | None = None) -> Any:
        """Read."""
        self.reads += 1
        if self.away:
            raise Unavailable("the ledger does not answer")
        return await self._ledger.token_changes(after, now, sha256)

    async def adopt_token(self, new: NewToken, now: datetime) -> TokenRow:
        """Adopt."""
        return await self._ledger.adopt_token(new, now)


class Book:
    """A book of tokens with a clock of its own."""

    def __init__(self, ledger: Ledger, home: Path) -> None:
        self.clock = Clock()
        self.source = CountingLedger(ledger)
        self.book = TokenBook(self.source, home, person="tess", clock=self.clock)

    async def opens(self, secret: str, now: datetime = START) -> bool:
        """Return whether the token lets anybody in."""
        try:
            await self.book.identify(secret, now)
        except Unauthenticated:
            return False
        return True

    def age(self) -> None:
        """Let the book grow too old to answer by itself."""
        self.clock.now += token_book.MAX_AGE_S + 0.01


@pytest.fixture
async def book(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Book]:
    """Return a book over a ledger of its own, as another process would have it."""
    ledger = open_ledger(Settings(home=tmp_path, database_url=fleet.url))
    yield Book(ledger, tmp_path / "home")
    await ledger.close()


@pytest.mark.req("S2", "Z1")
async def test_book_asks_the_ledger_no_more_often_than_its_age_allows(fleet: Fleet, book: Book) -> None:
    """A thousand requests of a hundred tokens within the allowed age cost one read; at once, they share it."""
    shown = [new_token("gff_") for _ in range(100)]
    for number, secret in enumerate(shown):
        await made(fleet, secret, AS_FACTORY.model_copy(update={"factory": f"f-{number}"}))
    for _ in range(10):
        assert all([await book.opens(secret) for secret in shown])
    assert book.source.reads == 1

    book.age()
    assert all(await asyncio.gather(*(book.opens(secret) for secret in shown)))
    assert book.source.reads == 2


@pytest.mark.req("S2", "F3")
async def test_book_refuses_a_token_that_was_revoked_elsewhere_once_it_is_too_old(fleet: Fleet, book: Book) -> None:
    """What another process ended is refused within the allowed age, also on a connection that stays open."""
    secret = new_token("gfu_")
    row = await made(fleet, secret)
    assert await book.opens(secret)
    seen = await book.book.identify(secret, START)
    await fleet.ledger.revoke_token(row.id, "lost", "tess", fleet.now)
    book.age()

    assert not await book.book.still_opens(seen, START)
    assert not await book.opens(secret)


async def test_book_knows_a_new_token_at_once(fleet: Fleet, book: Book) -> None:
    """A token that was made a moment ago, in another process, opens without waiting for the age."""
    assert not await book.opens(new_token("gfu_"))
    secret = new_token("gfu_")
    await made(fleet, secret)

    assert await book.opens(secret)


async def test_book_keeps_to_the_time_of_a_token(fleet: Fleet, book: Book) -> None:
    """A token that the book knows ends when its time has come, without a read."""
    secret = new_token("gfu_")
    await made(fleet, secret, expires_at=START + HOUR)
    assert await book.opens(secret)
    reads = book.source.reads

    assert not await book.opens(secret, START + HOUR)
    assert book.source.reads == reads


async def test_book_looks_nothing_up_that_is_no_token(fleet: Fleet, book: Book) -> None:
    """What cannot be a token costs neither a read nor a hash."""
    for text_ in ("", "x", "gfu_short", f"gfx_{'a' * 43}", f"gfu_{'a' * 44}", f"gfu_{'é' * 43}"):
        assert not await book.opens(text_)

    assert book.source.reads == 0


@pytest.mark.req("S2")
async def test_book_lets_nobody_in_while_the_ledger_is_away_longer_than_its_age(fleet: Fleet, book: Book) -> None:
    """Old knowledge opens nothing: the token might have been revoked."""
    secret = new_token("gfu_")
    await made(fleet, secret)
    assert await book.opens(secret)
    book.source.away = True
    assert await book.opens(secret)  # still young enough

    book.age()
    with pytest.raises(Unavailable):
        await book.opens(secret)


async def test_reads_that_overtake_each_other_bring_no_revoked_token_back(fleet: Fleet, book: Book) -> None:
    """An answer that was on its way while a newer one was taken in is not applied on top of it."""
    secret = new_token("gfu_")
    row = await made(fleet, secret)
    late = await fleet.ledger.token_changes(0, START)
    await fleet.ledger.revoke_token(row.id, "", "tess", fleet.now)
    held, going = asyncio.Event(), book.source.token_changes

    async def slow(after: int, now: datetime, sha256: str | None = None) -> Any:
        if sha256 is not None:
            await held.wait()
            return late
        return await going(after, now, sha256)

    book.source.token_changes = slow  # type: ignore[method-assign]
    overtaken = asyncio.create_task(book.opens(secret))
    await asyncio.sleep(0)
    book.age()
    assert not await book.book.still_opens(row, START)
    held.set()
    await overtaken
    assert not await book.book.still_opens(row, START)


# --- local tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.req("S2")
async def test_tokens_in_the_files_of_a_home_are_adopted_when_they_are_first_shown(fleet: Fleet, book: Book) -> None:
    """The person's file makes an admin, a factory's file that factory; each is on record once."""
    home = book.book._home
    person, machine = ensure_person_token(home), ensure_factory_token(home, "mac-1")
    for _ in range(2):
        await book.book.identify(person, START)
        await book.book.identify(machine, START)
    admin = await book.book.identify(person, START)
    factory = await book.book.identify(machine, START)

    assert (admin.name, admin.roles, admin.factory, admin.expires_at) == ("tess", (Role.ADMIN,), None, None)
    assert (factory.name, factory.roles, factory.factory) == ("mac-1", (Role.FACTORY,), "mac-1")
    assert await audited(fleet) == [("token.adopted", admin.id), ("token.adopted", factory.id)]


async def test_token_of_the_first_version_stays_good(fleet: Fleet, book: Book) -> None:
    """A home that was made before tokens were in the ledger opens with the token that it has."""
    old = "gf_" + secrets.token_urlsafe(32)
    write_token(person_token_file(book.book._home), old)

    assert ensure_person_token(book.book._home) == old
    assert (await book.book.identify(old, START)).roles == (Role.ADMIN,)


@pytest.mark.req("F3")
async def test_local_token_that_was_revoked_stays_revoked(fleet: Fleet, book: Book) -> None:
    """That its file is still there does not bring it back."""
    secret = ensure_person_token(book.book._home)
    row = await book.book.identify(secret, START)
    await fleet.ledger.revoke_token(row.id, "", "tess", fleet.now)
    book.age()

    assert not await book.opens(secret)


async def test_new_token_in_a_file_ends_the_one_that_was_there(fleet: Fleet, book: Book) -> None:
    """Deleting the file and starting again changes the token, as it always did."""
    file = person_token_file(book.book._home)
    before = ensure_person_token(book.book._home)
    assert await book.opens(before)
    file.unlink()
    after = ensure_person_token(book.book._home)

    assert await book.opens(after)
    book.age()
    assert not await book.opens(before)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
async def test_file_that_others_can_write_is_not_adopted(fleet: Fleet, book: Book, mode: int) -> None:
    """Who can write a file must not become an admin by it."""
    secret = ensure_person_token(book.book._home)
    person_token_file(book.book._home).chmod(mode)

    assert not await book.opens(secret)


@pytest.mark.parametrize(
    ("file", "folder", "ours"),
    [
        ((0o600, 7), (0o700, 7), True),
        ((0o600, 7), (0o777, 8), True),
        ((0o644, 0), (0o755, 8), True),
        ((0o644, 1000), (0o700, 7), True),  # a secret that was mounted into our directory
        ((0o644, 1000), (0o755, 0), True),
        ((0o644, 1000), (0o770, 7), False),
        ((0o644, 1000), (0o755, 1000), False),
        ((0o664, 1000), (0o700, 7), False),
    ],
)
def test_file_of_another_user_counts_where_only_we_place_files(
    file: tuple[int, int], folder: tuple[int, int], ours: bool
) -> None:
    """Mode and owner of the file and of its directory decide, for user 7."""
    assert is_trustworthy(status(*file), status(*folder), 7) is ours


def status(mode: int, uid: int) -> os.stat_result:
    """Return the status of a file."""
    return os.stat_result((mode, 0, 0, 1, uid, uid, 0, 0, 0, 0))


@pytest.mark.req("F3")
async def test_local_token_does_not_take_an_enrolled_factorys_name(fleet: Fleet, book: Book) -> None:
    """A factory of this home that happens to have the name of one elsewhere is refused, and told to change it."""
    await made(fleet, access=AS_FACTORY.model_copy(update={"factory": "mac-1"}))
    secret = ensure_factory_token(book.book._home, "mac-1")

    with pytest.raises(Unauthenticated, match="belongs to a factory on another machine"):
        await book.book.identify(secret, START)


# --- token files ------------------------------------------------------------------------------------------------------


def test_token_files_are_for_their_owner_alone_and_made_once(tmp_path: Path) -> None:
    """256 random bits with a telling prefix, in files of mode 0600; the same at the next start; a mode is mended."""
    home = tmp_path / "deep" / "home"
    person, machine = ensure_person_token(home), ensure_factory_token(home, "mac-1")
    assert (person[:4], len(person)) == ("gfu_", 47)
    assert (machine[:4], len(machine)) == ("gff_", 47)
    for file in (person_token_file(home), factory_token_file(home, "mac-1")):
        file.chmod(0o644)
    assert (ensure_person_token(home), ensure_factory_token(home, "mac-1")) == (person, machine)
    files = [path for path in home.rglob("*") if path.is_file()]
    assert sorted(files) == [factory_token_file(home, "mac-1"), person_token_file(home)]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_token_file_that_was_emptied_is_an_error(tmp_path: Path) -> None:
    """It is told at the start, with the way out, and is no door without a lock."""
    ensure_person_token(tmp_path)
    person_token_file(tmp_path).write_text("\n")
    with pytest.raises(Unavailable, match="usable token"):
        ensure_person_token(tmp_path)


def test_token_that_is_made_several_times_at_once_is_one(tmp_path: Path) -> None:
    """The first wins, and all end with its token."""
    together = Barrier(8)

    def make(_number: int) -> str:
        together.wait()
        return ensure_person_token(tmp_path)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(make, range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
