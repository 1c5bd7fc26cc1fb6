"""The store and the channels: whether files arrive, and whether anybody hears of it when they do not."""

import asyncio
import contextlib
from collections.abc import Iterator

from tickcollect.alerts.channels import Channel, ChannelError, open_channels
from tickcollect.alerts.post import try_channels
from tickcollect.check.findings import FAIL, NOTE, OK, WARN, Asked, Finding
from tickcollect.config import Config, ConfigError
from tickcollect.store import NotConfiguredError, StoreError, open_store

CHANNEL_WITHIN_S = 20.0


def look_at_store(asked: Asked) -> Iterator[Finding]:
    """Ask the store harmlessly whether it can be used, and whether arrival can be proved by looking."""
    name = ""
    try:
        with contextlib.closing(open_store(asked.config)) as store:
            name = store.name
            probe = store.probe()
    except NotConfiguredError:
        remedy = "Set S3_BUCKET, or UPLOAD_TO to a folder of another disk, to have them delivered"
        yield Finding("store", "", NOTE, "none is configured: sealed files stay on this machine", remedy)
    except StoreError as error:
        found, _, remedy = str(error).removeprefix(f"{name}: ").rstrip(".").partition(". ")
        yield Finding("store", name, FAIL, found, remedy or "Check the network and the store, then check again")
    else:
        remedy = (
            "" if probe.may_look else "Allow the key s3:GetObject to have arrival proved by looking (docs/upload.md)"
        )
        yield Finding("store", name, OK if probe.may_look else NOTE, probe.text, remedy)


def look_at_channels(asked: Asked) -> Iterator[Finding]:
    """Send each channel a message, or where none is wanted, ask it as far as it can be asked."""
    config = asked.config
    if not config.telegram_token.get_secret_value() and not config.alert_urls:
        remedy = "Set TELEGRAM_TOKEN and TELEGRAM_CHAT_ID, or ALERT_URLS"
        yield Finding("alerts", "", WARN, "no channel is configured: nobody hears of trouble", remedy)
        return
    try:
        if not asked.send:
            yield from asyncio.run(_reached(config))
            return
        for result in try_channels(config, CHANNEL_WITHIN_S):
            yield Finding("alerts", result.name, OK if result.ok else FAIL, result.detail, result.remedy)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("alerts", problem.key, FAIL, problem.wrong, problem.remedy)


async def _reached(config: Config) -> list[Finding]:
    return await asyncio.gather(*map(_reach, open_channels(config)))


async def _reach(channel: Channel) -> Finding:
    try:
        async with asyncio.timeout(CHANNEL_WITHIN_S):
            await channel.reach()
    except ChannelError as error:
        return Finding("alerts", channel.name, FAIL, error.detail, error.remedy)
    except TimeoutError:
        return Finding("alerts", channel.name, FAIL, "no answer in time", "Check the network")
    finally:
        await channel.close()
    return Finding("alerts", channel.name, OK, "well as far as can be seen without a message")
