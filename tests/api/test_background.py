"""What the API does beside answering: it connects for as long as it takes, and its loops never end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from api import background
from api.background import Dispatcher, TemporalLink
from api.shelf import ProfileShelf
from core.errors import InvalidInput, Unavailable
from core.settings import Settings
from tests.api.conftest import Api, Manifest, some_factory
from tests.waiting import PATIENCE_S


async def test_link_connects_when_temporal_is_there(
    api: Api, temporal_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then actions are `unavailable` and health says so; afterwards both work, without anybody's doing."""
    monkeypatch.setattr(background, "CONNECT_PAUSE_S", 0.01)
    refusals = [RuntimeError("refused"), OSError("refused"), RuntimeError("refused")]

    async def connector() -> Client:
        if refusals:
            raise refusals.pop()
        return temporal_client

    link = TemporalLink(api.ledger, Settings(home=api.home, temporal_address="nowhere:1"), connector=connector)
    with pytest.raises(Unavailable, match="nowhere:1"):
        _ = link.jobs
    assert await link.health() == "not connected yet"
    await asyncio.wait_for(link.run(), PATIENCE_S)
    assert refusals == []
    assert await link.health() == "ok"
    assert link.jobs is await link.connected()


async def test_dispatcher_hands_out_seats_when_woken(api: Api, manifest: Manifest) -> None:
    """A wake leads to a pass; an error in one is logged and the next pass still comes."""
    settings = Settings(home=api.home, outbox_retry_s=0.01)
    dispatcher = Dispatcher(api.ledger, TemporalLink(api.ledger, settings), settings)
    job_id = await api.submit(manifest())
    broken = 2
    dispatch = api.ledger.dispatch

    async def unsteady(*arguments: Any, **options: Any) -> Any:
        nonlocal broken
        if broken:
            broken -= 1
            raise RuntimeError("for once")
        return await dispatch(*arguments, **options)

    api.ledger.dispatch = unsteady  # type: ignore[method-assign]
    loop = asyncio.create_task(dispatcher.dispatch_forever())
    await api.ledger.register_factory(some_factory(), (await api.ledger.job(job_id)).submitted_at)
    dispatcher.wake()
    async with asyncio.timeout(PATIENCE_S):
        while await api.ledger.grant(job_id) is None:
            await asyncio.sleep(0.01)
    assert broken == 0
    assert not loop.done()
    loop.cancel()


async def test_quiet_dispatcher_looks_for_silent_factories(api: Api) -> None:
    """A factory that is not heard of goes offline, although nobody asked for a pass."""
    settings = Settings(home=api.home, outbox_retry_s=0.01)
    dispatcher = Dispatcher(api.ledger, TemporalLink(api.ledger, settings), settings)
    long_ago = some_factory()
    await api.ledger.register_factory(long_ago, datetime.now(UTC) - timedelta(hours=1))
    loop = asyncio.create_task(dispatcher.dispatch_forever())
    async with asyncio.timeout(PATIENCE_S):
        while (await api.ledger.factory(long_ago.name)).state != "offline":
            await asyncio.sleep(0.01)
    loop.cancel()


# --- profiles ---------------------------------------------------------------------------------------------------------

PROFILE = "---\nname: {name}\ndescription: {description}\n---\nWork well.\n"


def test_profiles_of_the_home_are_read_anew_when_they_change(tmp_path: Path) -> None:
    """Own profiles stand beside the built-in ones, or take their place, from the moment they are written."""
    shelf = ProfileShelf(tmp_path)
    built_in = shelf.profiles()
    assert "solo" in built_in
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "mine.md").write_text(PROFILE.format(name="mine", description="first"))
    assert shelf.profiles().keys() - built_in.keys() == {"mine"}
    (folder / "mine.md").write_text(PROFILE.format(name="mine", description="second one"))
    (folder / "solo.md").write_text(PROFILE.format(name="solo", description="my own"))
    assert shelf.profiles()["mine"].description == "second one"
    assert shelf.profiles()["solo"].description == "my own"


def test_broken_profile_is_told_until_it_is_mended(tmp_path: Path) -> None:
    """A mistake in a profile file is named at each use, and gone once it is mended."""
    shelf = ProfileShelf(tmp_path)
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "mine.md").write_text("---\nnam: mine\n---\nx\n")
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"mine\.md"):
            shelf.profiles()
    (folder / "mine.md").write_text(PROFILE.format(name="mine", description="good"))
    assert "mine" in shelf.profiles()
