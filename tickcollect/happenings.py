"""What happened: said in words to the log, kept as facts in the journal; and what was refused, kept in quarantine.

Rules:

1. Every kind of happening stands in one table, `HAPPENINGS`, with how loud it is and how it reads.
2. Telling never waits and never fails: whoever tells may be in the event loop. The journal is written by a thread of
   the disk, and what the disk refuses waits, up to a limit.
3. A refused message is kept with its reason and counted; of each kind of reason the first is told. It waits for a
   thread of the disk like the journal's entries; what a disk that refuses leaves waiting is bounded in bytes.
"""

import errno
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson
from loguru import logger

from tickcollect.journal import Journal, JournalError

HAPPENINGS_KEPT = 10_000
"""Happenings that wait for a journal which the disk refuses; older ones are then only in the log."""
QUARANTINE_LIMIT_BYTES = 100_000_000
"""A file of refused messages grows no further than this; after that they are counted only."""
QUARANTINE_WAITING_BYTES = 8_000_000
"""Refused messages that wait for a disk which does not take them; further ones are counted only."""
QUARANTINE_MESSAGE_BYTES = 100_000
"""Of one message so much is kept."""
QUARANTINE_KINDS = 1000
"""Reasons that are told and counted each on its own."""
QUARANTINE_MILESTONES = frozenset(10**power for power in range(1, 15))
_NUMBERS = re.compile(r"[0-9]+")

HAPPENINGS: dict[str, tuple[str, str]] = {
    "started": ("INFO", "{subject}: collecting {feeds} feeds into {data_dir}"),
    "not_stopped": (
        "WARNING",
        "{subject}: the run before was not stopped in order, but killed, or the machine lost power; {detail}",
    ),
    "recovered": ("WARNING", "{subject}: {detail}"),
    "foreign_file": ("WARNING", "{subject}: {file} is not one of its files and was left alone"),
    "continued": ("INFO", "{subject}: goes on after ID {last_id}"),
    "not_trading": ("WARNING", "{subject}: the exchange says {state}, so nothing may come"),
    "delisted": (
        "WARNING",
        "{subject}: gone from the exchange's list of symbols; what was collected is kept, and it stays subscribed",
    ),
    "symbol_unknown": ("ERROR", "{subject}: is not collected: {detail}"),
    "list_doubted": (
        "WARNING",
        "{subject}: its list lacks {count} of the {of} symbols collected here, hardly true; all stay subscribed",
    ),
    "listings_damaged": ("WARNING", "{subject}: {file} cannot be used and is made anew: {detail}"),
    "ban_remembered": (
        "WARNING",
        "{subject}: this IP is banned until {until}, so no request is sent before; what needs none is collected",
    ),
    "feeds_added": ("INFO", "{subject}: {feeds} more feeds are collected from now on"),
    "feed_left_out": ("ERROR", "{subject}: is not collected at present: {detail} It is tried again."),
    "feed_taken_up": ("INFO", "{subject}: is collected now"),
    "connected": ("INFO", "{subject}: connected to {url}, {streams} streams"),
    "disconnected": ("WARNING", "{subject}: {reason}. Next attempt in {retry_in_s} s. {remedy}"),
    "cannot_connect": ("WARNING", "{subject}: {reason}. Next attempt in {retry_in_s} s. {remedy}"),
    "renewing": ("INFO", "{subject}: a new connection to {url} is opened beside the old one, because {reason}"),
    "renewed": ("INFO", "{subject}: the new connection to {url} delivers, the old one is closed"),
    "renewal_failed": (
        "WARNING",
        "{subject}: the new connection to {url} is closed and the old one goes on: {reason}. Again in {retry_in_s} s",
    ),
    "joined": (
        "DEBUG",
        "{subject}: connection {connection} begins at {first_id}, the one before had come to {last_id}",
    ),
    "missed_by_one": ("INFO", "{subject}: {url} missed {first_id} to {last_id}; another connection brought them"),
    "carried": (
        "INFO",
        "{subject}: {url} brought {messages} messages, {copies} of them later than the other, and missed {missed}",
    ),
    "subscription_refused": ("ERROR", "{subject}: the exchange refuses {streams}: {message} (code {code})"),
    "subscription_accepted": ("INFO", "{subject}: the exchange accepts {streams} now"),
    "unacknowledged": (
        "WARNING",
        "{subject}: data comes from {url}, but the exchange has not said that {streams} are subscribed",
    ),
    "silent": ("ERROR", "{subject}: no data for {seconds} s although the exchange has IDs up to {exchange_id}"),
    "data_again": ("INFO", "{subject}: data comes again, after {seconds} s without"),
    "quiet": ("INFO", "{subject}: no data for {seconds} s, and the exchange has none either"),
    "silence_unclear": ("WARNING", "{subject}: no data for {seconds} s, and the exchange cannot be asked: {detail}"),
    "unknown_message": ("WARNING", "{subject}: sends messages of a kind that was not asked for: {name}"),
    "refused_message": ("WARNING", "{subject}: a message was put into quarantine: {reason}"),
    "quarantine_grown": ("WARNING", "{subject}: {count} messages were refused since the start; they are in quarantine"),
    "quarantine_failed": (
        "ERROR",
        "{subject}: refused messages cannot be written: {detail}. They wait, up to 8 MB; further ones are only counted",
    ),
    "gap": ("WARNING", "{subject}: {count} IDs are missing, {first_id} to {last_id}"),
    "unknown": ("INFO", "{subject}: not known since {since} whether IDs are missing ({count} of its feeds): {reason}"),
    "known": ("INFO", "{subject}: known again which IDs are missing ({count} of its feeds)"),
    "filled": ("INFO", "{subject}: {first_id} to {last_id} filled with {rows} rows of {source} in {seconds} s"),
    "fill_waits": (
        "WARNING",
        "{subject}: {first_id} to {last_id} cannot be filled yet: {detail} Again in {again_in_s:.0f} s",
    ),
    "absent": (
        "INFO",
        "{subject}: {count} IDs have no trade, as the exchange's history has shown twice, {first_id} to {last_id}",
    ),
    "unknown_trade_kind": (
        "WARNING",
        "{subject}: ID {id} is of kind {name}, which is not known; rows of that kind are written",
    ),
    "lost": ("ERROR", "{subject}: {count} IDs are lost, {first_id} to {last_id}: {reason}"),
    "absence_seen": (
        "INFO",
        "{subject}: history does not have {count} IDs, {first_id} to {last_id}; it is asked again to be sure",
    ),
    "absence_confirmed": ("DEBUG", "{subject}: history still does not have {count} IDs, {first_id} to {last_id}"),
    "reopened": ("WARNING", "{subject}: {count} IDs are missing again, {first_id} to {last_id}: {reason}"),
    "damaged": ("ERROR", "{subject}: {file} is not what was sealed: {detail}"),
    "contradicted": ("ERROR", "{subject}: ID {id} came again with other content, which is in quarantine"),
    "numbering_restarted": (
        "WARNING",
        "{subject}: numbering began anew, first seen at {first_id}, after {last_id}",
    ),
    "numbering_begins": ("INFO", "{subject}: as far as is known the new numbering begins at {first_id}"),
    "late_rows": ("WARNING", "{subject}: {count} rows came after their gap was declared, {first_id} to {last_id}"),
    "disk_trouble": ("ERROR", "{subject}: {detail} Collecting waits, and tries again every second."),
    "disk_again": ("INFO", "{subject}: {detail}"),
    "files_refused": ("ERROR", "{subject}: {detail} Its rows wait, and are tried again; the other feeds go on."),
    "files_again": ("INFO", "{subject}: its files take rows again"),
    "moved_aside": ("WARNING", "{subject}: {file} stood where a new file begins, and was moved to {kept}"),
    "disk_low": ("WARNING", "{subject}: only {free_mb} MB are free"),
    "disk_enough": ("INFO", "{subject}: {free_mb} MB are free again"),
    "file_lost": ("ERROR", "{subject}: {detail}"),
    "sync_failed": ("ERROR", "{subject}: {detail} The rows {first_id} to {last_id} are not safe and count as missing."),
    "sync_waits": (
        "WARNING",
        "{subject}: {detail} Its newest rows would not survive a power loss; it is tried again.",
    ),
    "sealed": ("INFO", "{subject}: sealed {file}, {rows} rows, {bytes} bytes"),
    "seal_failed": ("ERROR", "{subject}: {detail}"),
    "clock_stepped": ("WARNING", "{subject}: its clock was set by {seconds} s; times of arrival step with it"),
    "clock_offset": ("DEBUG", "{subject}: its clock is {offset_ms} ms ahead of this machine's"),
    "clock_wrong": ("WARNING", "{subject}: this machine's clock is wrong by {offset_ms} ms; run an NTP client"),
    "exchange_clock_wrong": (
        "WARNING",
        "{subject}: its clock is {offset_ms} ms ahead of this machine's, with which other exchanges agree",
    ),
    "limits_changed": (
        "WARNING",
        "{subject}: the exchange allows {now} request weight a minute now, before it was {was}",
    ),
    "limit_doubted": (
        "WARNING",
        "{subject}: its list says {stated} request weight a minute, which can hardly be meant; {kept} is kept to",
    ),
    "state_changed": ("WARNING", "{subject}: the exchange changed its state from {was} to {state}"),
    "uploaded": ("DEBUG", "{subject}: {file} is in {store} ({proof})"),
    "deleted": ("INFO", "{subject}: {file} was deleted here: {detail}"),
    "name_taken": ("ERROR", "{subject}: {file} was not uploaded, because its name is taken: {detail}"),
    "store_lost": ("ERROR", "{subject}: {file} is not in {store} any more: {detail}"),
    "upload_done": ("INFO", "{subject}: everything is there; {files} files were sent, {bytes} bytes in {seconds} s"),
    "upload_failed": ("ERROR", "{subject}: {waiting} files are not there yet, {sent} were sent: {reason}"),
    "channel_failed": ("ERROR", "{subject}: alerts cannot be sent: {detail}"),
    "channel_again": ("INFO", "{subject}: alerts are sent again: {detail}"),
    "not_written": (
        "ERROR",
        "{subject}: {count} rows that came last are in no file as far as is known, {feeds}: {detail}",
    ),
    "stopped": ("INFO", "{subject}: stopped after {rows} rows"),
}
"""Every happening: how loud it is, and how it reads. The journal keeps the facts."""


@dataclass
class Happenings:
    """What happened: logged at once, kept for the journal until a thread of the disk writes it."""

    journal: Journal
    also: Callable[[str, str, dict[str, object]], None] | None = None
    """Told of everything too: event, subject and facts. It never waits and never fails either."""
    _waiting: deque[tuple[str, dict[str, object]]] = field(default_factory=lambda: deque(maxlen=HAPPENINGS_KEPT))
    refused: str = ""
    """Why the journal cannot be written at present; empty while it can."""
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, event: str, subject: str, /, **facts: object) -> None:
        """Say that something happened; from any thread."""
        level, text = HAPPENINGS[event]
        logger.log(level, "{}", _one_line(text.format(subject=subject, **facts)))
        self._waiting.append((event, {"subject": subject, **facts}))
        if self.also is not None:
            self.also(event, subject, facts)

    def write(self) -> None:
        """Append what waits to the journal; what the disk refuses stays waiting. From any thread, not from the loop."""
        with self._writing:
            try:
                while self._waiting:
                    event, facts = self._waiting[0]
                    self.journal.append(event, **facts)
                    self._waiting.popleft()
            except JournalError as error:
                self._note_refusal(error)
            else:
                self.refused = ""

    def sync(self) -> None:
        """Append what waits, and make the journal safe from power loss."""
        self.write()
        try:
            self.journal.sync()
        except JournalError as error:
            self._note_refusal(error)

    def _note_refusal(self, error: JournalError) -> None:
        if not self.refused:
            logger.error("{}", error)
        self.refused = str(error)


def _one_line(text: str) -> str:
    """Return text as one line that can neither forge others nor steer a terminal: parts of it are from the network."""
    text = text.strip()
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


@dataclass
class Quarantine:
    """Keeps refused messages, one JSON line each, in a file an exchange. Any thread may call any method."""

    directory: Path
    tell: Callable[..., None]
    time_ns: Callable[[], int]
    counts: dict[str, int] = field(default_factory=dict)
    """By exchange and kind of reason, at most a few more than `QUARANTINE_KINDS`."""
    total: int = 0
    """How many messages were refused in this run."""
    failing: bool = False
    """The disk refused what waits, or so much waits that further messages were counted only."""
    _waiting: deque[tuple[str, bytes]] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    """Held for a moment by whoever refuses a message; never while a file is written."""
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, exchange: str, payload: bytes, reason: str) -> None:
        """Take one message with its reason for `write`; the first of each kind is told, all are counted.

        It never waits for the disk: whoever refuses a message may be the event loop.
        """
        line = {
            "at": utc_text(self.time_ns()),
            "reason": reason,
            "message": payload[:QUARANTINE_MESSAGE_BYTES].decode("utf-8", "backslashreplace"),
        }
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        with self._counting:
            told = self._counted(exchange, reason)
            fits = self._waiting_bytes + len(data) <= QUARANTINE_WAITING_BYTES
            if fits:
                self._waiting.append((exchange, data))
                self._waiting_bytes += len(data)
        for event, facts in told.items():
            self.tell(event, exchange, **facts)
        if not fits:
            self._note_failure(exchange, "the disk does not take what waits already")

    def _counted(self, exchange: str, reason: str) -> dict[str, dict[str, object]]:
        """Count a message, and return what has to be told because of it."""
        told: dict[str, dict[str, object]] = {}
        kind = f"{exchange}: {_NUMBERS.sub('#', reason.split(' - ', maxsplit=1)[0])[:60]}"
        if kind not in self.counts:
            if len(self.counts) < QUARANTINE_KINDS:
                told["refused_message"] = {"reason": reason}
            else:
                kind = f"{exchange}: another reason"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.total += 1
        if self.total in QUARANTINE_MILESTONES:
            told["quarantine_grown"] = {"count": self.total}
        return told

    def write(self) -> None:
        """Append what waits to its file; what the disk refuses stays waiting. From any thread, not from the loop."""
        with self._writing:
            exchange = ""
            try:
                while self._waiting:
                    exchange, data = self._waiting[0]
                    self._append(exchange, data)
                    with self._counting:
                        self._waiting.popleft()
                        self._waiting_bytes -= len(data)
            except OSError as error:
                self._note_failure(exchange, error.strerror or str(error))
            else:
                self.failing = False

    def _append(self, exchange: str, data: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{exchange}.jsonl").open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            if before >= QUARANTINE_LIMIT_BYTES:
                return
            if file.write(data) < len(data):  # a disk that is full takes a part; the line is written whole later
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _note_failure(self, exchange: str, detail: str) -> None:
        if not self.failing:
            self.failing = True
            self.tell("quarantine_failed", exchange, detail=f"{self.directory}: {detail}")


def utc_text(time_ns: int) -> str:
    """Return nanoseconds since 1970 as UTC text, to the millisecond."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
