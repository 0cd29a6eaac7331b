"""The control worker's own setting up; its work is tested with whole stacks."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import Client

from workers.control import SCHEDULE_ID, ensure_schedule


async def test_schedule_follows_the_setting_and_an_operators_pause_stays(temporal_client: Client) -> None:
    """A restart with another `reconcile_s` changes the interval; a schedule that was paused by hand stays paused."""
    handle = temporal_client.get_schedule_handle(SCHEDULE_ID)
    await ensure_schedule(temporal_client, 3600)
    try:
        await handle.pause(note="a look around")
        await ensure_schedule(temporal_client, 1800)
        schedule = (await handle.describe()).schedule
        assert [interval.every for interval in schedule.spec.intervals] == [timedelta(seconds=1800)]
        assert (schedule.state.paused, schedule.state.note) == (True, "a look around")
    finally:
        await handle.delete()
