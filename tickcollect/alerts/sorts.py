"""What happenings mean for people: the kinds of notices, the sorts of incidents and their words, what each event is.

A moment is over when it is told of. A standing trouble has a beginning and an end, and its row has words for both.
Gaps, lost connections, what is unknown and the start have words of their own in `telling`.
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["info", "warning", "error"]
Action = Literal["moment", "begin", "end", "hole"]

KINDS: dict[str, tuple[str, Level]] = {
    "started": ("collecting began, and what a crash left was taken up", "info"),
    "stopped": ("collecting ended, and what is still open", "info"),
    "disconnected": ("an exchange could not be reached for some time, and is again", "warning"),
    "gap": ("rows were missing, and what became of them", "warning"),
    "lost": ("rows are missing and history cannot give them", "error"),
    "unknown": ("for some time it was not known whether rows are missing", "warning"),
    "silent": ("a market trades and its stream brings nothing", "error"),
    "disk": ("the disk is low, refuses to write, or lost a file", "error"),
    "quarantine": ("messages were refused, and more of them", "warning"),
    "upload": ("files reached the store, or did not", "info"),
    "limits": ("the exchange changed its request limit", "warning"),
    "delisted": ("a symbol is not traded, or is again", "warning"),
    "clock": ("this machine's clock is wrong", "warning"),
    "trouble": ("something else that a person should look at", "warning"),
    "report": ("the data-quality report", "info"),
    "heartbeat": ("once a day: all is well, or what is not", "info"),
    "test": ("a message that only tests the channel", "info"),
}
"""Every kind of notice: what it tells, and its usual level. `ALERT_MUTE` names those that nobody wants."""


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort of incident: what of the same sort happens together is told together."""

    kind: str
    level: Level
    one: str
    """The title for one. `{subject}` is whose it is, or the first of several; other names are facts of the event."""
    many: str
    """The title for `{n}` of them."""
    line: str
    """What is said of each."""
    advice: str = ""
    """What it means, and what to do."""
    over: str = ""
    """The title for the end of one; empty for a moment, which has none."""
    over_many: str = ""
    unfetched: str = ""
    """The advice where nothing is fetched from history (`BACKFILL` is false); empty where that changes nothing."""


SORTS: dict[str, Sort] = {
    "started": Sort("started", "info", "started", "started", "{detail}"),
    "gap": Sort("gap", "warning", "gap open", "gaps open", "", over="gap filled", over_many="gaps filled"),
    "outage": Sort("disconnected", "warning", "not connected", "not connected", "{reason}. {remedy}", over="connected"),
    "unknown": Sort("unknown", "warning", "not known", "not known", "{reason}", over="known again"),
    "unstable": Sort(
        "disconnected",
        "warning",
        "{subject}: the connection breaks often",
        "{n} connections break often: {subject}",
        "{breaks} short breaks within an hour; the last: {reason}",
        "Each was over soon, and what was missed is fetched. Further ones today are counted in the heartbeat only. "
        "Look at this machine's network if other programs have trouble, too.",
        unfetched="Each was over soon; what was missed is not fetched, because BACKFILL is false. Further ones today "
        "are counted in the heartbeat only. Look at this machine's network if other programs have trouble, too.",
    ),
    "silent": Sort(
        "silent",
        "error",
        "stream is silent, {subject}",
        "{n} streams are silent: {subject}",
        "Nothing came for {seconds} although its market trades; the exchange has IDs up to {exchange_id}.",
        "It connects anew and fetches what was missed. If this lasts, see what the exchange announced.",
        "stream speaks again, {subject}",
        "{n} streams speak again: {subject}",
        "It connects anew; what was missed is not fetched, because BACKFILL is false. If this lasts, see what the "
        "exchange announced.",
    ),
    "silence_unclear": Sort(
        "silent",
        "warning",
        "no data, and the exchange cannot be asked why, {subject}",
        "no data from {n} feeds, and the exchange cannot be asked why: {subject}",
        "Nothing came for {seconds}: {detail}",
        "It asks again. If this lasts, look at the network and at what the exchange announced.",
    ),
    "disk_trouble": Sort(
        "disk",
        "error",
        "the disk does not take rows",
        "the disk does not take rows",
        "{detail}",
        "Collecting waits and tries again every second; what is missed meanwhile is fetched later. Look whether the "
        "disk is full (df -h), read-only (mount) or failing (dmesg).",
        "the disk takes rows again",
        "the disk takes rows again",
        "Collecting waits and tries again every second; what is missed meanwhile is not fetched, because BACKFILL is "
        "false. Look whether the disk is full (df -h), read-only (mount) or failing (dmesg).",
    ),
    "not_written": Sort(
        "disk",
        "error",
        "the last rows could not be written",
        "the last rows could not be written, {n} times",
        "{count} rows were received and are not known to be in a file: {detail}",
        "They count as not collected; the next start fetches them. Look at the disk first.",
        unfetched="They count as not collected, and are not fetched (BACKFILL is false). Look at the disk first.",
    ),
    "files_refused": Sort(
        "disk",
        "error",
        "the files of {subject} cannot be written",
        "the files of {n} feeds cannot be written: {subject}",
        "{detail}",
        "It waits and tries again; what is missed meanwhile is fetched later. The other feeds go on. Look whether the "
        "feed's directory is there, is a directory, and may be written.",
        "the files of {subject} are written again",
        "the files of {n} feeds are written again: {subject}",
        "It waits and tries again; what is missed meanwhile is not fetched, because BACKFILL is false. The other feeds "
        "go on. Look whether the feed's directory is there, is a directory, and may be written.",
    ),
    "moved_aside": Sort(
        "disk",
        "warning",
        "a file was in the way, {subject}",
        "{n} files were in the way: {subject}",
        "{file} is now {kept}.",
        "Nothing of it was changed. Look who put it there: files of a running collector must not be touched.",
    ),
    "sync_waits": Sort(
        "disk",
        "warning",
        "rows could not be made safe, {subject}",
        "rows of {n} feeds could not be made safe: {subject}",
        "{detail}",
        "They are in the file and would survive the end of the program, but not a power loss. It is tried again.",
    ),
    "disk_low": Sort(
        "disk",
        "warning",
        "the disk is nearly full",
        "the disks are nearly full",
        "{free_mb} MB are free in {subject}.",
        "When nothing is free, collecting stops. Make room, for example with `tickcollect upload --delete-after 7`.",
        "the disk has room again",
        "the disks have room again",
    ),
    "seal_failed": Sort(
        "disk",
        "error",
        "a file could not be packed, {subject}",
        "{n} files could not be packed: {subject}",
        "{detail}",
        "The rows stay as they are, and packing is tried again. Look at the disk if this comes again.",
    ),
    "quarantine": Sort(
        "quarantine",
        "warning",
        "a message was refused, {subject}",
        "{n} kinds of messages were refused: {subject}",
        "{reason}",
        "They are kept in quarantine/ in the data directory; further ones like them are only counted. "
        "If the exchange changed its messages, look for a newer tickcollect.",
    ),
    "quarantine_grown": Sort(
        "quarantine",
        "warning",
        "more messages were refused, {subject}",
        "more messages were refused: {subject}",
        "{count} since the start.",
        "They are kept in quarantine/ in the data directory. Look there for what they have in common.",
    ),
    "quarantine_failed": Sort(
        "quarantine",
        "error",
        "refused messages cannot be kept, {subject}",
        "refused messages cannot be kept: {subject}",
        "{detail}",
        "They are only counted. Look whether the data directory can be written.",
    ),
    "subscription_refused": Sort(
        "trouble",
        "error",
        "{subject} refuses a subscription",
        "{n} subscriptions were refused: {subject}",
        "{streams}: {message} (code {code})",
        "Nothing of these streams is collected; they are asked for again every five minutes. Check COLLECT; "
        "`tickcollect check` tries each stream.",
    ),
    "unknown_message": Sort(
        "trouble",
        "warning",
        "{subject} sends something that was not asked for",
        "{n} messages of unknown kinds: {subject}",
        "Messages named {name}.",
        "They are kept in quarantine. Rows are not affected. Nothing to do.",
    ),
    "unknown_trade_kind": Sort(
        "trouble",
        "warning",
        "{subject} has trades of an unknown kind",
        "{n} unknown kinds of trades: {subject}",
        "Kind {name}, first seen with ID {id}.",
        "They are written like all trades. Ask the exchange what they are.",
    ),
    "contradicted": Sort(
        "trouble",
        "error",
        "an ID came again with other content, {subject}",
        "{n} IDs came again with other content: {subject}",
        "ID {id}.",
        "The row that came first is in the file, the other one in quarantine. Ask the exchange which is right.",
    ),
    "numbering_restarted": Sort(
        "trouble",
        "warning",
        "numbering began anew, {subject}",
        "numbering began anew in {n} feeds: {subject}",
        "Its first row here is ID {first_id}; the last one before was {last_id}.",
        "The exchange did that. Rows go on in a new file. What came in it before that row is asked for. Nothing to do.",
    ),
    "late_rows": Sort(
        "trouble",
        "warning",
        "rows came too late, {subject}",
        "rows came too late, {n} times: {subject}",
        "{count} rows, ID {first_id} to {last_id}, after their gap was declared.",
        "They get a file of their own. Nothing to do.",
        unfetched="They get a file of their own. Nothing else is fetched: BACKFILL is false.",
    ),
    "clock": Sort(
        "clock",
        "warning",
        "this machine's clock is wrong",
        "this machine's clock is wrong",
        "It is {offset_ms} ms off the clock of {subject}.",
        "Run an NTP client, such as chrony. Trade times are the exchange's own and stay right; times of arrival and "
        "the hour of the nightly upload do not.",
        "this machine's clock is right again",
        "this machine's clock is right again",
    ),
    "exchange_clock": Sort(
        "clock",
        "warning",
        "the clock of {subject} is wrong",
        "the clocks of {n} exchanges are wrong: {subject}",
        "It is {offset_ms} ms ahead of this machine's, with which the other exchanges agree.",
        "Nothing to do here. The trade times of this exchange may be wrong; they are kept as they came.",
        "the clock of {subject} is right again",
        "the clocks of {n} exchanges are right again: {subject}",
    ),
    "clock_stepped": Sort(
        "clock",
        "warning",
        "this machine's clock was set",
        "this machine's clock was set {n} times",
        "By {seconds}; times of arrival step with it.",
        "Trade times are the exchange's own and stay right. Nothing to do if somebody set it on purpose.",
    ),
    "limits": Sort(
        "limits",
        "warning",
        "{subject} changed its request limit",
        "{n} changes of request limits: {subject}",
        "{now} request weight a minute; before it was {was}.",
        "The lower one of this and the limit that this version knows is kept to. Nothing to do.",
    ),
    "limit_doubted": Sort(
        "limits",
        "warning",
        "{subject} states a request limit that can hardly be meant",
        "{n} request limits that can hardly be meant: {subject}",
        "{stated} request weight a minute; {kept} is kept to.",
        "The exchange's list may be damaged. Nothing to do, unless it announced such a limit.",
    ),
    "delisted": Sort(
        "delisted",
        "warning",
        "the state of {subject} changed",
        "the state of {n} feeds changed: {subject}",
        "The exchange says {state}; before it said {was}.",
        "Rows come only while a symbol is TRADING. Take one that is gone for good out of COLLECT.",
    ),
    "not_trading": Sort(
        "delisted",
        "warning",
        "{subject} is not trading",
        "{n} feeds are not trading: {subject}",
        "The exchange says {state}.",
        "Nothing comes until it does. Take what is gone for good out of COLLECT.",
    ),
    "gone": Sort(
        "delisted",
        "warning",
        "{subject} is gone from the exchange's list",
        "{n} feeds are gone from the exchange's list: {subject}",
        "The exchange does not list this symbol any more.",
        "What was collected is kept, and the symbol stays subscribed in case it comes back. Take it out of COLLECT if "
        "it is gone for good.",
    ),
    "symbol_unknown": Sort(
        "delisted",
        "error",
        "{subject} is not collected: the exchange does not list it",
        "{n} feeds are not collected, because the exchange does not list them: {subject}",
        "{detail}",
        "Everything else is collected. Correct the symbol in COLLECT and start again.",
    ),
    "list_doubted": Sort(
        "delisted",
        "warning",
        "the list of symbols of {subject} lacks many",
        "the lists of symbols of {n} exchanges lack many: {subject}",
        "{count} of the {of} symbols that are collected here are not in it.",
        "That is hardly true, so all stay subscribed. See what the exchange announced.",
    ),
    "listings_damaged": Sort(
        "trouble",
        "warning",
        "the list of {subject} that is kept between starts was damaged",
        "the lists of {subject} that are kept between starts were damaged",
        "{file}: {detail}",
        "It only keeps the exchanges' lists of symbols from one start to the next, and is made anew. Nothing to do if "
        "this comes once.",
    ),
    "ban_remembered": Sort(
        "disconnected",
        "warning",
        "{subject} has banned requests of this machine",
        "{n} exchanges have banned requests of this machine: {subject}",
        "No request is sent before {until}.",
        "Rows are collected live; what is missed is fetched later. Look for other programs that share the address.",
        unfetched="Rows are collected live. Look for other programs that share the address.",
    ),
    "left_out": Sort(
        "trouble",
        "error",
        "{subject} is not collected",
        "{n} feeds are not collected: {subject}",
        "{detail}",
        "It is tried again by itself, and everything else is collected.",
        "{subject} is collected again",
        "{n} feeds are collected again: {subject}",
    ),
    "upload": Sort(
        "upload",
        "error",
        "upload failed",
        "uploads failed",
        "{waiting} files ({waiting_bytes}) are not in {subject} yet, {sent} were sent: {reason}",
        "What is not proved to be there stays here. The next run goes on where this one ended; to run it now: "
        "`tickcollect upload`.",
    ),
    "upload_done": Sort(
        "upload",
        "info",
        "upload done",
        "{n} uploads done",
        "{files} files ({bytes}) were sent to {subject} in {seconds}; {already} were there before.",
        "Everything that is sealed is there, and proved. Nothing to do.",
    ),
    "name_taken": Sort(
        "upload",
        "error",
        "a file was not uploaded, its name is taken, {subject}",
        "{n} files were not uploaded, their names are taken: {subject}",
        "{file}: {detail}",
        "Nothing was overwritten, and the file stays here. Look whether another collector writes to the same place.",
    ),
    "store_lost": Sort(
        "upload",
        "error",
        "the store lost a file, {subject}",
        "the store lost {n} files: {subject}",
        "{file}: {detail}",
        "It was proved to be there before. If the file is still here, it is sent again; if not, look for another copy, "
        "or an older version in the store, and see who may delete there.",
    ),
}  # fmt: skip
"""Every sort of incident, in its words."""

LINES: dict[str, str] = {
    "started": "Collecting {feeds} feeds into {data_dir}.",
    "foreign_file": "{file}",
    "not_stopped": "{detail}",
}
"""Lines of events that share a sort with others and say something else."""

EVENTS: dict[str, tuple[tuple[Action, str], ...]] = {
    "started": (("moment", "started"),),
    "recovered": (("moment", "started"),),
    "not_stopped": (("moment", "started"),),
    "foreign_file": (("moment", "started"),),
    "continued": (),
    "not_trading": (("moment", "not_trading"),),
    "delisted": (("moment", "gone"),),
    "symbol_unknown": (("moment", "symbol_unknown"),),
    "list_doubted": (("moment", "list_doubted"),),
    "listings_damaged": (("moment", "listings_damaged"),),
    "ban_remembered": (("moment", "ban_remembered"),),
    "feeds_added": (),
    "feed_left_out": (("begin", "left_out"),),
    "feed_taken_up": (("end", "left_out"),),
    "connected": (("end", "outage"),),
    "disconnected": (("begin", "outage"),),
    "cannot_connect": (("begin", "outage"),),
    "renewing": (),
    "renewed": (),
    "renewal_failed": (),
    "joined": (),
    "missed_by_one": (),
    "carried": (),
    "subscription_refused": (("moment", "subscription_refused"),),
    "subscription_accepted": (),
    "unacknowledged": (),
    "silent": (("begin", "silent"),),
    "data_again": (("end", "silent"),),
    "quiet": (("end", "silent"),),
    "silence_unclear": (("moment", "silence_unclear"),),
    "unknown_message": (("moment", "unknown_message"),),
    "refused_message": (("moment", "quarantine"),),
    "quarantine_grown": (("moment", "quarantine_grown"),),
    "quarantine_failed": (("moment", "quarantine_failed"),),
    "gap": (("hole", "gap"),),
    "filled": (("hole", "gap"),),
    "fill_waits": (("hole", "gap"),),
    "absent": (("hole", "gap"),),
    "unknown_trade_kind": (("moment", "unknown_trade_kind"),),
    "lost": (("hole", "gap"),),
    "absence_seen": (("hole", "gap"),),
    "absence_confirmed": (),
    "reopened": (("hole", "gap"),),
    "damaged": (("hole", "gap"),),
    "unknown": (("begin", "unknown"),),
    "known": (("end", "unknown"),),
    "file_lost": (("hole", "gap"),),
    "sync_failed": (("hole", "gap"),),
    "contradicted": (("moment", "contradicted"),),
    "numbering_restarted": (("moment", "numbering_restarted"),),
    "numbering_begins": (),
    "late_rows": (("moment", "late_rows"),),
    "disk_trouble": (("begin", "disk_trouble"),),
    "disk_again": (("end", "disk_trouble"),),
    "files_refused": (("begin", "files_refused"),),
    "files_again": (("end", "files_refused"),),
    "moved_aside": (("moment", "moved_aside"),),
    "sync_waits": (("moment", "sync_waits"),),
    "disk_low": (("begin", "disk_low"),),
    "disk_enough": (("end", "disk_low"),),
    "sealed": (),
    "seal_failed": (("moment", "seal_failed"),),
    "clock_stepped": (("moment", "clock_stepped"),),
    "clock_offset": (("end", "clock"), ("end", "exchange_clock")),
    "clock_wrong": (("end", "exchange_clock"), ("begin", "clock")),
    "exchange_clock_wrong": (("end", "clock"), ("begin", "exchange_clock")),
    "limits_changed": (("moment", "limits"),),
    "limit_doubted": (("moment", "limit_doubted"),),
    "state_changed": (("moment", "delisted"),),
    "uploaded": (),
    "deleted": (),
    "name_taken": (("moment", "name_taken"),),
    "store_lost": (("moment", "store_lost"),),
    "upload_done": (("moment", "upload_done"),),
    "upload_failed": (("moment", "upload"),),
    "channel_failed": (),  # told to the other channels by `post`
    "channel_again": (),
    "not_written": (("moment", "not_written"),),
    "stopped": (),
}
"""What each event is to an incident. One that is nothing is only counted.

An event whose `feeds` is a list is one of each of these feeds.
"""
