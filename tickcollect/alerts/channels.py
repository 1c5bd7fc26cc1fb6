"""The channels on which people are told: Telegram, and whatever apprise knows. One message at a time, said as it is.

Rules:

1. A channel sends and nothing else. What fails comes back as a `ChannelError` of one of the kinds of `Failure`; when to
   try again is decided by `alerts.post`.
2. Texts are hostile until proved otherwise. Control characters, lone surrogates and what turns the direction of writing
   are taken out, lines stay lines, and Telegram's HTML has every value escaped. A text that is too long is cut where a
   line ends, and says how many lines are left out.
3. No secret is shown: not in a channel's name, an error or a log. The libraries' own logs, which hold addresses with
   tokens, go nowhere; what they say about a failure is taken from there with every part of the address blotted out.
4. Telegram (core.telegram.org/bots/api, /bots/faq): texts of 4096 UTF-16 units and captions of 1024, counted after the
   markup is parsed; one message a second to a chat, 20 a minute to a group; `retry_after` obeyed; a group that became
   a supergroup has a new number. An answer that does not come proves nothing: the message may have arrived (`unsure`).
5. A chat or a token is wrong only by the Bot API's own word: JSON with `ok` false, an `error_code` and a `description`
   (core.telegram.org/bots/api, "Making requests"). Whatever else is answered, such as a proxy's page with 404, comes
   from somebody else on the way and is an outage. What apprise hands on of an answer says less still, so none of its
   services is given up.
6. apprise sends in a thread that dies with the process, because a dead mail server may hold it for long. Its services
   use the proxy of the environment, as the library does; `PROXY` is for Telegram.

telegram and apprise are imported when channels are opened: commands that send nothing do without them.
"""

import asyncio
import html
import inspect
import logging
import re
import threading
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote, unquote, urlsplit

import orjson

from tickcollect.alerts.incidents import Notice
from tickcollect.alerts.words import clean
from tickcollect.config import Config, ConfigError, Problem

if TYPE_CHECKING:
    from apprise import Apprise, NotifyBase
    from telegram import Bot
    from telegram.request import HTTPXRequest

TELEGRAM_TEXT_UNITS = 4096
TELEGRAM_CAPTION_UNITS = 1024
TELEGRAM_FILE_BYTES = 50_000_000
TELEGRAM_PHOTO_BYTES = 10_000_000
_PICTURES = (".png", ".jpg", ".jpeg")
CHAT_PAUSE_S = 1.05
GROUP_PAUSE_S = 3.2
"""Leaves 19 messages in any 60 s."""
SERVICE_PAUSE_S = 1.0
"""Shortest pause for a service of apprise; many want longer ones, which apprise knows."""
TELEGRAM_TIMEOUT_S = 5.0
TELEGRAM_FILE_TIMEOUT_S = 60.0
TELEGRAM_WITHIN_S = 20.0
TELEGRAM_FILE_WITHIN_S = 180.0
APPRISE_WITHIN_S = 30.0
"""What a service has not taken by then is not waited for; its thread may go on."""
APPRISE_FILES_WITHIN_S = 120.0
LINE_UNITS = 1000
"""A single line is cut at this length: it holds a server's error page rather than a sentence."""
DETAIL_CHARACTERS = 200
SECRET_CHARACTERS = 3
"""Parts of an address shorter than this are no secret, and blotting them out would blot out every text."""

Failure = Literal["again", "doubtful", "refused", "dead", "moved"]


class ChannelError(Exception):
    """A message was not sent, or not surely. The text says what happened, without secrets; `remedy` what to do.

    `kind` is `again` (network, limits, trouble of the service: try later, not before `after_s` seconds), `doubtful`
    (it looks as if nothing would be taken, and it is not sure who says so: try later, less often), `refused` (this
    message), `dead` (every message, by the service's own word, until somebody changes something) or `moved` (the
    channel knows its new place now: send again). `unsure`: the message may have arrived all the same.
    """

    def __init__(
        self, kind: Failure, detail: str, remedy: str = "", *, after_s: float = 0.0, unsure: bool = False
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.remedy = remedy
        self.after_s = after_s
        self.unsure = unsure


@dataclass(frozen=True, slots=True)
class Part:
    """What goes out in one request: the text of a notice, files of it, or both."""

    notice: Notice
    has_text: bool
    files: tuple[Path, ...] = ()


class Channel(Protocol):
    """One place where people read messages."""

    @property
    def name(self) -> str:
        """What it is called in logs and tables, without secrets."""

    @property
    def pause_s(self) -> float:
        """Shortest time between two messages."""

    @property
    def units(self) -> int:
        """Longest text of one message, in UTF-16 units."""

    def parts(self, notice: Notice) -> list[Part]:
        """Return the requests that a notice takes, in order."""

    async def send(self, part: Part) -> None:
        """Send one part. Raises `ChannelError`."""

    async def reach(self) -> None:
        """Ask whether messages would be taken, without sending one, where the service allows that."""

    async def close(self) -> None:
        """Let go of connections."""


def open_channels(config: Config) -> list[Channel]:
    """Return the configured channels, none of them used yet. Raises `ConfigError` for URLs that apprise refuses."""
    _quiet_libraries()
    channels: list[Channel] = []
    if config.telegram_token.get_secret_value():
        channels.append(_open_telegram(config))
    problems: list[Problem] = []
    for place, url in enumerate(config.alert_urls):
        try:
            channels.append(_open_apprise(url.get_secret_value(), f"ALERT_URLS[{place}]"))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return channels


def problems_of(config: Config) -> list[str]:
    """Return what is wrong with the configured channels, a line each; nothing is sent."""
    try:
        open_channels(config)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


# --- Texts ---------------------------------------------------------------------------------------------------------

_SURELY_VISIBLE = re.compile("[!-~]")


def utf16_units(text: str) -> int:
    """Return the length as Telegram counts it: characters beyond U+FFFF are two."""
    return len(text) + sum(character > "\uffff" for character in text)


def shortened(text: str, units: int) -> str:
    """Return the text, or its beginning and an ellipsis, within a number of UTF-16 units."""
    if utf16_units(text[: units + 1]) <= units:
        return text
    kept = text[: units - 1]
    while utf16_units(kept) > units - 1:
        kept = kept[: -max(1, (utf16_units(kept) - units + 1) // 2)]
    return kept.rstrip() + "…"


def written(notice: Notice, units: int) -> tuple[str, list[str]]:
    """Return title and lines, clean and, with a line break between each, within a number of UTF-16 units."""
    title = clean(notice.title, LINE_UNITS)
    if not _SURELY_VISIBLE.search(title):
        title = f"{notice.kind} {title}"  # services refuse a text in which they see nothing
    title = shortened(title, min(LINE_UNITS, units))
    lines = [shortened(clean(line, LINE_UNITS), LINE_UNITS) for line in notice.lines[:units]]
    lengths = [utf16_units(line) + 1 for line in lines]
    if utf16_units(title) + sum(lengths) <= units and len(lines) == len(notice.lines):
        return title, lines
    room = units - utf16_units(title)
    for kept in range(len(lines), -1, -1):
        left_out = len(notice.lines) - kept
        more = f"… {left_out} more line{'s' * (left_out > 1)}"
        if sum(lengths[:kept]) + utf16_units(more) + 1 <= room:
            return title, [*lines[:kept], more]
    return title, []


class Blotter:
    """Blots out secrets in texts that come from elsewhere, and makes them one short line."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in (secret, unquote(secret))}
        found = sorted((re.escape(form) for form in forms if len(form) >= SECRET_CHARACTERS), key=len, reverse=True)
        self._pattern = re.compile("|".join(found)) if found else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets, one line of `DETAIL_CHARACTERS` at most."""
        if self._pattern is not None:
            text = self._pattern.sub("***", text)
        return clean(text, DETAIL_CHARACTERS)


def secret_parts(url: str) -> set[str]:
    """Return what may be secret in an address: all of it but the scheme and a host's name."""
    _, _, rest = url.partition("://")
    host = _host(url)
    return {url, rest, *re.split(r"[/:@?&=,#+ ]+", rest)} - {host, ""}


def _host(url: str) -> str:
    """Return the host, where what stands in its place looks like one; many services keep a token there."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    looks_like_one = host == "localhost" or re.fullmatch(
        r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}|[0-9]+(\.[0-9]+){3}|[0-9a-f:]+:[0-9a-f:]+", host
    )
    return host if looks_like_one else ""


# --- Logs of the libraries -----------------------------------------------------------------------------------------

_LOUD = ("httpx", "httpcore", "telegram", "apprise")

_CAUSE = re.compile(r"\([0-9]{3}, b?['\"][^'\"]*|\[Errno -?[0-9]+\] [\w ]+|[Tt]imed out|Connection aborted")
"""The part of an exception's text that a person needs: an answer of a server, or an error of the system."""

_reasons: ContextVar[list[str] | None] = ContextVar("reasons", default=None)


def _keep_reason(record: logging.LogRecord) -> bool:
    """Keep why a message is not sent, and let apprise log nothing: as a filter, this is asked before any handler."""
    said = _reasons.get()
    if said is not None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            said.append(text[: 10 * DETAIL_CHARACTERS])
        elif "xception" in text:  # some services log it as a detail only
            said += [re.sub(r"^\(([0-9]+), b?.", r"\1 ", found[0]) for found in _CAUSE.finditer(text)]
    return False


_NOTHING = logging.NullHandler()


def _quiet_libraries() -> None:
    """Keep addresses with tokens out of every log: httpx writes each at INFO, apprise each message at DEBUG."""
    logging.getLogger("urllib3").setLevel(logging.WARNING)  # boto3 uses it too: its warnings stay
    for name in _LOUD:
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
        logger.addHandler(_NOTHING)  # without any, warnings would be printed
    apprise = logging.getLogger("apprise")
    apprise.setLevel(logging.DEBUG)
    apprise.addFilter(_keep_reason)


# --- Telegram ------------------------------------------------------------------------------------------------------

_CHAT_REMEDIES: tuple[tuple[str, str], ...] = (
    ("chat not found", "Write any message to the bot first, or add it to the group; then check TELEGRAM_CHAT_ID"),
    ("chat_id is empty", "Put the chat's number into TELEGRAM_CHAT_ID"),
    ("peer_id_invalid", "Check TELEGRAM_CHAT_ID"),
    ("not enough rights", "Let the bot post in that chat"),
    ("have no rights", "Let the bot post in that chat"),
    ("need administrator rights", "Make the bot an administrator of that channel"),
    ("chat_write_forbidden", "Let the bot post in that chat"),
    ("deactivated", "The chat or its owner is gone: choose another chat and put it into TELEGRAM_CHAT_ID"),
    ("topic_closed", "Open the topic again, or choose another chat"),
    ("blocked by the user", "Unblock the bot in Telegram"),
    ("initiate conversation", "Write any message to the bot first"),
    ("to bots", "TELEGRAM_CHAT_ID is a bot: put your own chat's number there"),
    ("was kicked", "Add the bot to the group again"),
    ("not a member", "Add the bot to the group or channel"),
)
"""What Telegram says when a chat takes nothing from this bot, whatever the text; and what to do."""

_MAY_HAVE_ARRIVED = {"ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "CloseError", "RemoteProtocolError"}
"""How httpx calls the end of a request that had been sent, in part at least."""

_BOT = "Put the token that @BotFather gave into TELEGRAM_TOKEN; check TELEGRAM_API_URL if it is set"
_LIMIT = "Too much was sent with this bot; wait that long, or give the collector a bot of its own"
_NETWORK = "Check the machine's network and name server, and PROXY if one is set"
_STRANGER = "not an answer of the Bot API"
_BETWEEN = "A proxy or a login page may answer in Telegram's place: check the network, PROXY and TELEGRAM_API_URL"


@dataclass
class Telegram:
    """One chat of one bot. `token` and `proxy` are kept from every text that leaves this class."""

    chat: str
    bot: "Bot" = field(repr=False)
    request: "HTTPXRequest" = field(repr=False)
    blot: Blotter = field(repr=False)

    @property
    def name(self) -> str:
        """The chat as configured, or its new number."""
        return f"telegram {self.chat}"

    @property
    def units(self) -> int:
        """Telegram's longest text."""
        return TELEGRAM_TEXT_UNITS

    @property
    def pause_s(self) -> float:
        """Groups and channels, which have negative numbers or names, take fewer messages than a person."""
        return GROUP_PAUSE_S if self.chat.startswith(("-", "@")) else CHAT_PAUSE_S

    def parts(self, notice: Notice) -> list[Part]:
        """Return the text and each file; a short text is the first file's caption."""
        files = notice.attachments
        if files and utf16_units("\n".join((notice.title, *notice.lines))) < TELEGRAM_CAPTION_UNITS:
            first, files = Part(notice, has_text=True, files=files[:1]), files[1:]
        else:
            first = Part(notice, has_text=True)
        return [first, *(Part(notice, has_text=False, files=(file,)) for file in files)]

    async def send(self, part: Part) -> None:
        """Send a text, a file or a picture by the Bot API's sendMessage, sendDocument or sendPhoto."""
        quiet = part.notice.level == "info"
        if not part.files:
            text = _as_html(part.notice, TELEGRAM_TEXT_UNITS)
            await self._asked(self._send_text(text, quiet=quiet), TELEGRAM_WITHIN_S)
            return
        caption = _as_html(part.notice, TELEGRAM_CAPTION_UNITS) if part.has_text else None
        for file in part.files:
            await self._send_either(file, caption, quiet=quiet)

    async def _send_either(self, file: Path, caption: str | None, *, quiet: bool) -> None:
        """Send a picture as a photo, which is seen at once; as a file where Telegram does not take it so."""
        if file.suffix.lower() in _PICTURES and len(_content(file)) <= TELEGRAM_PHOTO_BYTES:
            try:
                await self._asked(self._send_photo(file, caption, quiet=quiet), TELEGRAM_FILE_WITHIN_S)
            except ChannelError as error:
                if error.kind != "refused":
                    raise
            else:
                return
        await self._asked(self._send_file(file, caption, quiet=quiet), TELEGRAM_FILE_WITHIN_S)

    async def _send_text(self, text: str, *, quiet: bool) -> None:
        from telegram import LinkPreviewOptions

        await self.bot.send_message(
            self.chat,
            text,
            parse_mode="HTML",
            disable_notification=quiet,
            link_preview_options=LinkPreviewOptions(is_disabled=True),
        )

    async def _send_file(self, file: Path, caption: str | None, *, quiet: bool) -> None:
        await self.bot.send_document(
            self.chat,
            _content(file),
            filename=clean(file.name),
            caption=caption,
            parse_mode="HTML",
            disable_notification=quiet,
            disable_content_type_detection=True,
            read_timeout=TELEGRAM_FILE_TIMEOUT_S,
            write_timeout=TELEGRAM_FILE_TIMEOUT_S,
        )

    async def _send_photo(self, file: Path, caption: str | None, *, quiet: bool) -> None:
        await self.bot.send_photo(
            self.chat,
            _content(file),
            filename=clean(file.name),
            caption=caption,
            parse_mode="HTML",
            disable_notification=quiet,
            read_timeout=TELEGRAM_FILE_TIMEOUT_S,
            write_timeout=TELEGRAM_FILE_TIMEOUT_S,
        )

    async def reach(self) -> None:
        """Ask who the bot is, which proves network, address and token."""
        try:
            await self._asked(self.bot.get_me(), TELEGRAM_WITHIN_S)
        except ChannelError as error:
            error.unsure = False  # nothing was sent
            raise

    async def close(self) -> None:
        """Close the connections."""
        await self.request.shutdown()

    async def _asked(self, request: Coroutine[Any, Any, object], within_s: float) -> None:
        """Await a request and turn its failure into a `ChannelError`."""
        from telegram.error import TelegramError

        try:
            async with asyncio.timeout(within_s):  # the library's own limits let an answer trickle for ever
                await request
        except TelegramError as error:
            raise self._failure(error) from None
        except TimeoutError:
            raise ChannelError("again", f"no whole answer within {within_s:.0f} s", _NETWORK, unsure=True) from None
        except ChannelError:
            raise
        except Exception as error:  # noqa: BLE001 - the library trips over an answer that is none of the Bot API
            raise ChannelError("again", f"{_STRANGER} ({type(error).__name__})", _BETWEEN, unsure=True) from None

    def _failure(self, error: Exception) -> ChannelError:
        """Return what an error of the library means: who answered decides, then what it said."""
        match error.__cause__:
            case _RefusalError() as refusal:
                return self._explained(refusal)
            case ChannelError() as stranger:
                return stranger
        unsure = type(error.__cause__).__name__ in _MAY_HAVE_ARRIVED
        detail = self.blot(str(error)).rstrip(" .:")
        if detail == "Timed out":
            detail = f"no answer within {TELEGRAM_TIMEOUT_S:.0f} s"
        elif unsure:
            detail = f"the connection broke without an answer ({detail})"
        return ChannelError("again", detail, _NETWORK, unsure=unsure)

    def _explained(self, refusal: "_RefusalError") -> ChannelError:
        """Return what the Bot API's own refusal means for this chat."""
        said = self.blot(_PREFIX.sub("", refusal.description))
        said = said[:1].upper() + said[1:]
        remedy = next((remedy for words, remedy in _CHAT_REMEDIES if words in said.lower()), "")
        match refusal.code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.NOT_FOUND:
                failure = ChannelError("dead", f"Telegram does not know this bot ({said})", _BOT)
            case HTTPStatus.FORBIDDEN:
                failure = ChannelError("dead", said, remedy or "Let the bot write to this chat")
            case HTTPStatus.BAD_REQUEST if remedy:
                failure = ChannelError("dead", said, remedy)
            case HTTPStatus.BAD_REQUEST | HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                failure = ChannelError("refused", f"Telegram refuses this message: {said}")
            case _:
                failure = ChannelError("again", f"Telegram is in trouble: {said} ({refusal.code})", _NETWORK)
        return self._redirected(refusal) or failure

    def _redirected(self, refusal: "_RefusalError") -> ChannelError | None:
        """Return what the parameters of a refusal ask for: another chat, or silence for a time."""
        match refusal.parameters:
            case {"migrate_to_chat_id": int(new_chat)}:
                self.chat = str(new_chat)
                detail = f"the group became a supergroup with the number {self.chat}"
                return ChannelError("moved", detail, f"Put {self.chat} into TELEGRAM_CHAT_ID")
            case {"retry_after": int(wait_s)} if wait_s > 0:
                return ChannelError("again", f"Telegram wants {wait_s} s of silence", _LIMIT, after_s=float(wait_s))
        return None


_PREFIX = re.compile(r"^(Bad Request|Forbidden): ")


class _RefusalError(Exception):
    """The Bot API's own refusal: JSON with `ok` false, as core.telegram.org/bots/api says under "Making requests"."""

    def __init__(self, code: int, description: str, parameters: dict[str, object]) -> None:
        super().__init__(code)
        self.code = code
        self.description = description
        self.parameters = parameters


def _refusal_of(status: int, payload: bytes) -> _RefusalError | None:
    """Return the refusal that an answer is; None for one that agrees. Raises `ChannelError` for what is neither."""
    try:
        said = orjson.loads(payload)
    except orjson.JSONDecodeError:
        said = None
    match said:
        case {"ok": True}:
            return None
        case {"ok": False, "error_code": int(code), "description": str(description)}:
            parameters = said.get("parameters")
            return _RefusalError(code, description, parameters if isinstance(parameters, dict) else {})
    raise ChannelError("again", f"{_STRANGER} (HTTP {status})", _BETWEEN)


def _open_telegram(config: Config) -> Telegram:
    from telegram import Bot
    from telegram.error import TelegramError
    from telegram.request import HTTPXRequest

    class ToldApart(HTTPXRequest):
        """Tells the Bot API's own answers from everybody else's, which the library takes for the same."""

        async def do_request(self, *values: Any, **named: Any) -> tuple[int, bytes]:
            status, payload = await super().do_request(*values, **named)
            try:
                refusal = _refusal_of(status, payload)
            except ChannelError as error:
                raise TelegramError(error.detail) from error
            if refusal is not None:
                raise TelegramError(str(refusal.code)) from refusal
            return status, payload

    token = config.telegram_token.get_secret_value()
    proxy = config.proxy.get_secret_value() if config.proxy else None
    request = ToldApart(
        connection_pool_size=4,
        read_timeout=TELEGRAM_TIMEOUT_S,
        write_timeout=TELEGRAM_TIMEOUT_S,
        connect_timeout=TELEGRAM_TIMEOUT_S,
        pool_timeout=TELEGRAM_TIMEOUT_S,
        media_write_timeout=TELEGRAM_FILE_TIMEOUT_S,
        proxy=proxy,
        httpx_kwargs={"trust_env": False},
    )
    address = config.telegram_api_url.rstrip("/")
    bot = Bot(
        token,
        base_url=f"{address}/bot",
        base_file_url=f"{address}/file/bot",
        request=request,
        get_updates_request=request,
    )
    secrets = {token, *token.split(":", 1)[1:], *(secret_parts(proxy) if proxy else ())}
    return Telegram(config.telegram_chat_id, bot, request, Blotter(secrets))


def _as_html(notice: Notice, units: int) -> str:
    """Return the text with a bold title, every value escaped; `units` counts what remains after parsing."""
    title, lines = written(notice, units)
    return "\n".join([f"<b>{html.escape(title, quote=False)}</b>", *(html.escape(line, quote=False) for line in lines)])


def _content(file: Path) -> bytes:
    """Return a file's bytes."""
    try:
        if file.stat().st_size > TELEGRAM_FILE_BYTES:
            raise ChannelError("refused", f"{file.name} is larger than the 50 MB that a bot may send")
        return file.read_bytes()
    except OSError as error:
        raise ChannelError("refused", f"{file.name} cannot be read: {error.strerror}") from None


# --- apprise -------------------------------------------------------------------------------------------------------

_STATUS = re.compile(r"(?:error[= :]*|HTTP[ /.0-9]*|^)([2-5]\d\d)\b")
_STATUS_KINDS: dict[int, Failure] = {
    400: "refused", 413: "refused", 422: "refused",
    401: "doubtful", 403: "doubtful", 404: "doubtful", 410: "doubtful",
    530: "doubtful", 534: "doubtful", 535: "doubtful",
    550: "doubtful", 551: "doubtful", 553: "doubtful",
    552: "refused", 554: "refused",
}  # fmt: skip
"""What an answer means for a service: HTTP's (RFC 9110), and SMTP's refusals (RFC 5321, RFC 4954). Others: again.

None is the end of a channel (rule 5): a number in the library's log does not say whether service or proxy gave it.
"""
_KIND_REMEDIES: dict[Failure, str] = {
    "again": "Check that the service runs and can be reached from here",
    "doubtful": "Check the address, user and password in {key}",
    "dead": "",
    "refused": "",
    "moved": "",
}
_SILENCE_AFTER_LIMIT_S = 60.0
"""After 429, whose Retry-After apprise does not hand on."""
_TOO_MANY = 429


@dataclass
class AppriseService:
    """One of `ALERT_URLS`."""

    name: str
    pause_s: float
    units: int
    """Longest text; where a service has no title, the title is part of it."""
    takes_files: bool
    key: str
    sender: "Apprise" = field(repr=False)
    blot: Blotter = field(repr=False)
    _sending: threading.Thread | None = None
    _late: tuple[Part, bool] | None = None
    """What a thread did that was not waited for any more."""

    def parts(self, notice: Notice) -> list[Part]:
        """All of a notice goes in one request; files where the service takes them."""
        return [Part(notice, has_text=True, files=notice.attachments if self.takes_files else ())]

    async def send(self, part: Part) -> None:
        """Send title, text and files in a thread of its own; what a late answer has confirmed is not sent again."""
        if self._sending is not None and self._sending.is_alive():
            raise ChannelError("again", "the message before is still on its way", _KIND_REMEDIES["again"])
        late, self._late = self._late, None
        if late == (part, True):
            return
        said: list[str] = []
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def work() -> None:
            _reasons.set(said)
            try:
                sent = self._notify(part)
            except Exception as error:  # noqa: BLE001 - a service's own mistake; it is told like any failure
                said.append(f"{type(error).__name__}: {error}")
                sent = False
            self._late = (part, sent)
            _hand_over(done, sent)

        self._sending = threading.Thread(target=work, name=self.name, daemon=True)
        self._sending.start()
        within_s = APPRISE_FILES_WITHIN_S if part.files else APPRISE_WITHIN_S
        try:
            sent = await asyncio.wait_for(done, within_s)
        except TimeoutError:
            detail = f"no answer within {within_s:.0f} s"
            raise ChannelError("again", detail, _KIND_REMEDIES["again"], unsure=True) from None
        self._late = None
        if not sent:
            raise self._explained(said)

    def _notify(self, part: Part) -> bool:
        """Hand a message to apprise, and wait for it."""
        from apprise import AppriseAttachment, NotifyFormat, NotifyType

        notice = part.notice
        kinds = {"info": NotifyType.INFO, "warning": NotifyType.WARNING, "error": NotifyType.FAILURE}
        left_at_home = () if self.takes_files else notice.attachments
        title, lines = written(notice, self.units)
        lines += [f"This channel takes no files; not sent: {file.name}" for file in left_at_home]
        files = (
            AppriseAttachment([f"file://{quote(str(file.absolute()))}" for file in part.files]) if part.files else None
        )
        result = self.sender.notify(
            title=title,
            body="\n".join(lines) or title,
            body_format=NotifyFormat.TEXT,
            notify_type=kinds[notice.level],
            attach=files,
        )
        return bool(result)

    async def reach(self) -> None:
        """No service can be asked without sending."""

    async def close(self) -> None:
        """Nothing stays open between messages."""

    def _explained(self, said: Sequence[str]) -> ChannelError:
        """Return what the library's log means."""
        status = next((int(found[1]) for text in said if (found := _STATUS.search(text))), 0)
        kind = _STATUS_KINDS.get(status, "again")
        detail = self.blot("; ".join(dict.fromkeys(said)) or "apprise gives no reason")
        remedy = _KIND_REMEDIES[kind].format(key=self.key)
        return ChannelError(kind, detail, remedy, after_s=_SILENCE_AFTER_LIMIT_S if status == _TOO_MANY else 0.0)


def _hand_over(done: "asyncio.Future[bool]", sent: bool) -> None:  # noqa: FBT001 - the value, not a switch
    """Give a thread's result to the loop that waits for it, if it still does."""

    def settle() -> None:
        if not done.done():
            done.set_result(sent)

    loop = done.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)


_FILES_IN_MODE = {"NotifySlack": "bot", "NotifyWebexTeams": "bot", "NotifyNotifyre": "fax"}
"""Services of apprise that take files in one of their modes only, and drop them elsewhere while they report success."""


def _takes_files(service: "NotifyBase") -> bool:
    mode = _FILES_IN_MODE.get(type(service).__name__)
    return bool(service.attachment_support) and (mode is None or getattr(service, "mode", "") == mode)


def _open_apprise(url: str, key: str) -> AppriseService:
    """Return the channel of one URL. Raises `ConfigError`; the URL itself is never shown."""
    from apprise import Apprise, AppriseAsset

    scheme = url.partition("://")[0].lower()
    # A time limit of apprise's own would send from a thread that the process waits for at its end.
    knows_limits = "service_timeout" in inspect.signature(AppriseAsset).parameters
    unlimited: dict[str, Any] = {"service_timeout": 0} if knows_limits else {}
    asset = AppriseAsset(app_id="tickcollect", app_desc="tickcollect", app_url="", async_mode=False, **unlimited)
    sender, said = Apprise(asset=asset), list[str]()
    remembered = _reasons.set(said)
    try:
        added = sender.add(url)
    finally:
        _reasons.reset(remembered)
    if not added or len(sender) != 1:
        blot = Blotter(secret_parts(url))
        wrong = f"({scheme}://...) is not understood by apprise: {blot('; '.join(said)) or 'no reason given'}"
        raise ConfigError(
            [Problem("configuration", None, key, wrong, "See github.com/caronc/apprise/wiki for its form")]
        )
    service: NotifyBase = sender[0]
    if not service.verify_certificate:
        wrong = f"({scheme}://...) has verify=no"
        raise ConfigError([Problem("configuration", None, key, wrong, "Remove it: certificates are always verified")])
    return AppriseService(
        name=" ".join(part for part in (scheme, _host(url), f"({key})") if part),
        pause_s=max(SERVICE_PAUSE_S, float(service.request_rate_per_sec)),
        units=int(service.body_maxlen),
        takes_files=_takes_files(service),
        key=key,
        sender=sender,
        blot=Blotter(secret_parts(url)),
    )
