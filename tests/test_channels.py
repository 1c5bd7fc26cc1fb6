"""Channels against services on loopback that speak Telegram's, SMTP's and HTTP's own language."""

import asyncio
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.bot_api import (
    BAD_GATEWAY,
    CAPTION_UNITS,
    CHAT,
    GROUP,
    TEXT_UNITS,
    TOKEN,
    BotApi,
    failure,
    parsed,
    too_many,
    visible,
)
from channels.mail import Mailbox, mail_server, text_of
from channels.web import Answer, Request, Site
from conftest import Programs
from hypothesis import example, given
from hypothesis import strategies as st

from tickcollect.alerts import channels, post
from tickcollect.alerts.channels import Channel, ChannelError, open_channels, problems_of, utf16_units, written
from tickcollect.alerts.incidents import Level, Notice
from tickcollect.config import Config, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # imported by apprise

PASSWORD = "Pw-planted-8c1f"


def notice(
    title: str = "tick1: gap filled", *lines: str, level: Level = "info", files: tuple[Path, ...] = ()
) -> Notice:
    """Return a notice."""
    return Notice("gap", level, title, lines, "tick1/gap/1", ended=True, attachments=files)


def sent(channel: Channel, message: Notice) -> None:
    """Send all parts of a notice, in one loop, and close the channel."""

    async def run() -> None:
        try:
            for part in channel.parts(message):
                await channel.send(part)
        finally:
            await channel.close()

    asyncio.run(run())


def refused(channel: Channel, message: Notice) -> ChannelError:
    """Send a notice that has to fail, and return how."""
    with pytest.raises(ChannelError) as error:
        sent(channel, message)
    return error.value


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """Serve mail."""
    with mail_server() as served:
        yield served


def telegram(api: BotApi, chat: str = CHAT, **more: Any) -> Channel:
    """Return the channel to a chat."""
    keys = {"telegram_token": api.token, "telegram_chat_id": chat, "telegram_api_url": api.address, **more}
    (channel,) = open_channels(Config.model_validate(keys))
    return channel


def service(url: str) -> Channel:
    """Return the channel of one of apprise's URLs."""
    (channel,) = open_channels(Config.model_validate({"alert_urls": [url]}))
    return channel


def mail(mailbox: Mailbox) -> Channel:
    """Return the channel to a mailbox."""
    return service(f"mailto://127.0.0.1:{mailbox.port}?from=ticks@example.com&to=night@example.com")


# --- Texts ---------------------------------------------------------------------------------------------------------

HOSTILE = st.text(st.characters(exclude_categories=()), max_size=80)


@given(title=HOSTILE, lines=st.lists(HOSTILE, max_size=8))
@example(title="<b>", lines=["</b>", "&lt;", "&", "a < b > c & d", '"_*[`'])
@example(title="\ud83d", lines=["\udc00\ud800", "\x00\x1b[31m", "\u202e"])
@example(title="\u3164\u2800\u200b", lines=["\n\n"])
@example(title="", lines=[])
@example(title="t" * 5000, lines=["\U0001f4c8" * 5000])
def test_telegram_takes_any_text(title: str, lines: list[str]) -> None:
    """Whatever is in a text, Telegram parses it, sees something, and shows the values as they are."""
    for units in (TEXT_UNITS, CAPTION_UNITS):
        html = channels._as_html(notice(title, *lines), units)
        html.encode("utf-8")
        text, bold = parsed(html, "HTML")
        head, rest = written(notice(title, *lines), units)
        assert text == "\n".join([head, *rest]).strip()
        assert bold == head.strip()
        assert visible(bold)
        assert len(text.encode("utf-16-le")) // 2 <= units
        assert len(html.splitlines()) <= 1 + len(lines)


@given(st.lists(st.text(st.sampled_from("a é\U0001f4c8<&"), max_size=1200), max_size=60), st.integers(40, 5000))
def test_long_texts_are_cut_where_a_line_ends(lines: list[str], units: int) -> None:
    """A text that is too long keeps whole lines, and the last one says how many are left out."""
    title, kept = written(notice("tick1: gap", *lines), units)
    assert utf16_units("\n".join([title, *kept])) <= units
    whole, all_lines = written(notice("tick1: gap", *lines), 10**6)
    assert title == whole
    if kept == all_lines:
        return
    more = re.fullmatch(r"… (\d+) more lines?", kept[-1])
    assert more is not None
    assert kept[:-1] == all_lines[: len(kept) - 1]
    assert len(kept) - 1 + int(more[1]) == len(lines)


def test_cut_text_reads_well(api: BotApi) -> None:
    """A hundred feeds make one message: the first lines, and the number of those left out."""
    lines = [f"binance/trade/SYMBOL{number:03}: 15 trades missing, all fetched from history" for number in range(100)]
    sent(telegram(api), notice("tick1: 100 gaps filled", *lines))
    (message,) = api.messages
    shown = message.text.splitlines()
    assert shown[0] == message.bold == "tick1: 100 gaps filled"
    assert shown[1:-1] == lines[: len(shown) - 2]
    assert shown[-1] == f"… {100 - (len(shown) - 2)} more lines"
    assert TEXT_UNITS - 100 < len(message.text) <= TEXT_UNITS


@pytest.mark.parametrize("text", ["<script>", "a\ud800b", "\x00", "_*[]()~`>#+-=|{}.!&amp;", "\U0001f4c8" * 3000])
def test_hostile_texts_arrive(api: BotApi, text: str) -> None:
    """Markup, half characters and too much of everything go through the real client and are taken."""
    sent(telegram(api), notice(text, text, text))
    (message,) = api.messages
    assert visible(message.text)


def test_an_error_page_of_a_megabyte_is_one_short_line(api: BotApi) -> None:
    """A line that is longer than any sentence is cut, so that what follows it is read."""
    sent(telegram(api), notice("tick1: upload failed", "x" * 1_000_000, "Nothing to do."))
    (message,) = api.messages
    first, second, third = message.text.splitlines()
    assert (first, third) == ("tick1: upload failed", "Nothing to do.")
    assert second == "x" * 999 + "…"


# --- Telegram ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "quiet"), [("info", True), ("warning", False), ("error", False)])
def test_what_is_only_news_makes_no_sound(api: BotApi, level: Level, quiet: bool) -> None:  # noqa: FBT001 - a row of the table
    """A phone stays quiet for a notice of level info, and only for that."""
    sent(telegram(api), notice(level=level))
    assert [message.quiet for message in api.messages] == [quiet]


def test_a_short_text_is_the_first_files_caption(api: BotApi, tmp_path: Path) -> None:
    """A report comes as its table with the text below it, then its chart as a picture that is seen at once."""
    table, chart = tmp_path / "report 50%?.csv", tmp_path / "chart.png"
    table.write_bytes(b"a,b\n1,2\n")
    chart.write_bytes(b"\x89PNG\x00\xff")
    sent(telegram(api), notice("tick1: complete", "All <rows> are there.", files=(table, chart)))
    assert api.methods() == ["sendDocument", "sendPhoto"]
    first, second = api.messages
    assert (first.text, first.file_name, first.file) == (
        "tick1: complete\nAll <rows> are there.",
        table.name,
        b"a,b\n1,2\n",
    )
    assert (second.text, second.file_name, second.file) == ("", "chart.png", b"\x89PNG\x00\xff")


def test_a_long_text_goes_ahead_of_its_files(api: BotApi, tmp_path: Path) -> None:
    """What no caption holds is a message of its own, whole, before the file."""
    table = tmp_path / "report.csv"
    table.write_bytes(b"a\n")
    line = "y" * 900
    sent(telegram(api), notice("tick1: report", line, line, files=(table,)))
    assert api.methods() == ["sendMessage", "sendDocument"]
    assert api.messages[0].text == f"tick1: report\n{line}\n{line}"
    assert (api.messages[1].text, api.messages[1].file_name) == ("", "report.csv")


def test_a_picture_that_telegram_does_not_take_as_one_comes_as_a_file(api: BotApi, tmp_path: Path) -> None:
    """A chart that is refused as a photo is not lost."""
    chart = tmp_path / "chart.png"
    chart.write_bytes(b"no picture at all")
    sent(telegram(api), notice("tick1: complete", files=(chart,)))
    assert api.methods() == ["sendPhoto", "sendDocument"]
    assert [message.file_name for message in api.messages] == ["chart.png"]


@pytest.mark.parametrize(("chat", "pause_s"), [(CHAT, 1.0), (GROUP, 3.0), ("@ticks", 3.0)])
def test_pauses_keep_the_limits_of_chats_and_groups(api: BotApi, chat: str, pause_s: float) -> None:
    """A chat gets one message a second, a group or channel no more than 20 a minute."""
    assert pause_s < telegram(api, chat).pause_s < pause_s + 0.5


FAILURES: dict[str, tuple[Answer, str, bool, str, str]] = {
    # what is answered: kind, unsure, words of the detail, words of the remedy
    "429": (too_many(35), "again", False, "35 s of silence", "wait that long"),
    "401": (failure(401, "Unauthorized"), "dead", False, "does not know this bot", "TELEGRAM_TOKEN"),
    "404": (failure(404, "Not Found"), "dead", False, "does not know this bot", "TELEGRAM_API_URL"),
    "blocked": (failure(403, "Forbidden: bot was blocked by the user"), "dead", False, "blocked", "Unblock the bot"),
    "kicked": (
        failure(403, "Forbidden: bot was kicked from the supergroup chat"), "dead", False, "kicked", "Add the bot",
    ),
    "not begun": (
        failure(403, "Forbidden: bot can't initiate conversation with a user"), "dead", False, "initiate", "Write any",
    ),
    "no chat": (failure(400, "Bad Request: chat not found"), "dead", False, "hat not found", "Write any message"),
    "no rights": (
        failure(400, "Bad Request: not enough rights to send text messages to the chat"), "dead", False, "rights",
        "Let the bot post",
    ),
    "bad text": (failure(400, "Bad Request: can't parse entities"), "refused", False, "parse entities", ""),
    "500": (failure(500, "Internal Server Error"), "again", False, "Internal Server Error", "network"),
    "502": (BAD_GATEWAY, "again", False, "not an answer of the Bot API (HTTP 502)", "network"),
    "login page": (
        Answer(200, b"<html>log in</html>", "text/html"), "again", False, "not an answer of the Bot API (HTTP 200)",
        "A proxy or a login page",
    ),
    "a proxy's 401": (Answer(401, b"<html>who are you?</html>", "text/html"), "again", False, "(HTTP 401)", "PROXY"),
    "a proxy's 403": (Answer(403, b"<html>denied</html>", "text/html"), "again", False, "(HTTP 403)", "PROXY"),
    "a wrong host's 404": (Answer(404, b"<html>nothing</html>", "text/html"), "again", False, "(HTTP 404)", "API_URL"),
    "a foreign JSON's 404": (Answer(404, b'{"error": "no route"}'), "again", False, "(HTTP 404)", "API_URL"),
    "an empty 403": (Answer(403), "again", False, "(HTTP 403)", "PROXY"),
    "nested JSON": (Answer(200, b"[" * 100_000), "again", False, "not an answer of the Bot API", "network"),
    "413": (failure(413, "Request Entity Too Large"), "refused", False, "Too Large", ""),
    "no result": (Answer(200, b'{"ok":true}'), "again", True, "not an answer of the Bot API", "network"),
    "no object": (Answer(200, b"7"), "again", False, "not an answer of the Bot API", "network"),
    "hang": (Answer(instead="hang"), "again", True, "no answer within", "network"),
    "reset": (Answer(instead="reset"), "again", True, "broke without an answer", "network"),
}  # fmt: skip
"""From core.telegram.org/bots/api#making-requests and the answers that the Bot API is known to give."""


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_says_what_it_means(api: BotApi, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refusal of Telegram is told in its own words, with what to do, and is tried again only where that helps."""
    monkeypatch.setattr(channels, "TELEGRAM_TIMEOUT_S", 0.3)
    api.always, kind, unsure, detail, remedy = FAILURES[name]
    error = refused(telegram(api), notice())
    assert (error.kind, error.unsure) == (kind, unsure)
    assert detail in error.detail
    assert remedy in error.remedy
    assert len(error.detail) <= channels.DETAIL_CHARACTERS + 50
    assert "\n" not in error.detail


@pytest.mark.parametrize("seconds", [1, 35, 3600])
def test_retry_after_is_handed_on(api: BotApi, seconds: int) -> None:
    """The time that Telegram wants to be left alone comes with the error."""
    api.always = too_many(seconds)
    assert refused(telegram(api), notice()).after_s == seconds


def test_a_machine_on_which_nothing_listens(api: BotApi) -> None:
    """A refused connection proves that nothing was sent."""
    api.leave()
    error = refused(telegram(api), notice())
    assert (error.kind, error.unsure, error.remedy[:26]) == ("again", False, "Check the machine's networ")
    api.come_back()


def test_a_server_whose_tls_fails_is_an_outage(api: BotApi) -> None:
    """Whoever cannot prove to be Telegram gets nothing, and the channel goes on trying."""
    error = refused(telegram(api, telegram_api_url=api.address.replace("http://", "https://")), notice())
    assert (error.kind, error.unsure) == ("again", False)
    assert TOKEN.partition(":")[2] not in error.detail
    assert api.requests == []


def test_wrong_tokens_as_the_bot_api_itself_refuses_them(api: BotApi) -> None:
    """A revoked token and one that is none are both final."""
    for wrong in (TOKEN[:-1] + "x", "abc"):
        channel = telegram(api, telegram_token=wrong)
        error = refused(channel, notice())
        assert (error.kind, wrong in str(error)) == ("dead", False)


def test_a_group_that_moved_gets_its_messages_at_its_new_number(api: BotApi) -> None:
    """The channel goes on with the new number and says what to put into the configuration."""
    channel = telegram(api, "-555")
    api.chats.add("-1009988")
    api.scripted.append(failure(400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-1009988))

    async def run() -> ChannelError:
        (part,) = channel.parts(notice())
        with pytest.raises(ChannelError) as error:
            await channel.send(part)
        await channel.send(part)
        await channel.close()
        return error.value

    error = asyncio.run(run())
    assert (error.kind, error.remedy) == ("moved", "Put -1009988 into TELEGRAM_CHAT_ID")
    assert [message.chat for message in api.messages] == ["-1009988"]


def test_an_answer_that_trickles_for_ever_ends(api: BotApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request ends after a time as a whole, even where each wait of it is short."""
    monkeypatch.setattr(channels, "TELEGRAM_WITHIN_S", 0.3)
    api.always = Answer(instead="hang")
    error = refused(telegram(api), notice())
    assert (error.kind, error.unsure) == ("again", True)
    assert "no whole answer" in error.detail


@pytest.mark.parametrize("trouble", ["missing", "large"])
def test_a_file_that_cannot_be_sent_is_refused(api: BotApi, tmp_path: Path, trouble: str) -> None:
    """A file that is gone or beyond the limit for bots is named, and is not tried."""
    file = tmp_path / "report.csv"
    if trouble == "large":
        with file.open("wb") as made:
            made.truncate(50_000_001)
    error = refused(telegram(api), notice(files=(file,)))
    assert (error.kind, error.detail[:10]) == ("refused", "report.csv")
    assert api.requests == []


def test_proxies_come_from_the_configuration_only(api: BotApi, hook: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not used; `PROXY` is."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sent(telegram(api), notice())
    assert len(api.messages) == 1
    hook.respond = lambda _: Answer(
        200, b'{"ok":true,"result":{"message_id":1,"date":1,"chat":{"id":1,"type":"private"}}}'
    )
    sent(telegram(api, proxy=hook.address), notice())
    assert [request.path for request in hook.requests] == [f"{api.address}/bot{TOKEN}/sendMessage"]
    assert len(api.messages) == 1


# --- apprise -------------------------------------------------------------------------------------------------------


def test_mail_arrives_with_its_files(mailbox: Mailbox, tmp_path: Path) -> None:
    """A notice becomes a mail: title as subject, lines as text, files attached."""
    table = tmp_path / "report 50%?.csv"
    table.write_bytes(b"a,b\n1,2\n")
    sent(mail(mailbox), notice("tick1: report <&>", "All <rows> & more.", "Second line.", files=(table,)))
    (message,) = mailbox.messages
    assert message["Subject"] == "tick1: report <&>"
    assert text_of(message).splitlines() == ["All <rows> & more.", "Second line."]
    (attached,) = message.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == (table.name, "a,b\n1,2\n")


@pytest.mark.parametrize(("level", "kind"), [("info", "info"), ("warning", "warning"), ("error", "failure")])
def test_a_webhook_gets_title_text_and_kind(hook: Site, level: Level, kind: str) -> None:
    """A webhook is told what people are told, and how bad it is."""
    sent(service(f"json://127.0.0.1:{hook.port}/x"), notice("tick1: a\ud800", "<b> & \x00", level=level))
    told = json.loads(hook.requests[0].body)
    assert (told["title"], told["message"], told["type"]) == ("tick1: a", "<b> &", kind)


SERVICE_FAILURES = [
    (401, "doubtful"), (403, "doubtful"), (404, "doubtful"), (410, "doubtful"), (400, "refused"), (413, "refused"),
    (408, "again"), (429, "again"), (500, "again"), (502, "again"), (503, "again"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), SERVICE_FAILURES)
def test_what_a_service_answers_decides(hook: Site, status: int, kind: str) -> None:
    """No answer ends a channel, because a proxy may have given it; a service that is asked too much gets a minute."""
    hook.always = Answer(status, b"no")
    error = refused(service(f"json://127.0.0.1:{hook.port}/"), notice())
    assert error.kind == kind
    assert str(status) in error.detail
    assert error.after_s == (60 if status == 429 else 0)
    assert ("ALERT_URLS[0]" in error.remedy) == (kind == "doubtful")


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        ("550 no such user", "doubtful"),
        ("535 5.7.8 bad password", "doubtful"),
        ("451 try later", "again"),
        ("552 too big", "refused"),
    ],
)
def test_what_a_mail_server_answers_decides(mailbox: Mailbox, refusal: str, kind: str) -> None:
    """A mail server's refusal is told with its own words."""
    mailbox.refusal = refusal
    error = refused(mail(mailbox), notice())
    assert error.kind == kind
    assert refusal.partition(" ")[2] in error.detail


@pytest.mark.parametrize("how", ["hang", "reset", "away"])
def test_a_dead_service_is_tried_again(hook: Site, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection, a broken one or no answer: later, and nothing is held up for long."""
    monkeypatch.setattr(channels, "APPRISE_WITHIN_S", 0.3)
    channel = service(f"json://127.0.0.1:{hook.port}/?rto=0.6")
    if how == "away":
        hook.leave()
    else:
        hook.always = Answer(instead="hang" if how == "hang" else "reset")
    error = refused(channel, notice())
    assert (error.kind, error.unsure) == ("again", how == "hang")
    if how == "hang":
        assert "still on its way" in refused(channel, notice()).detail
    if how == "away":
        hook.come_back()


def test_a_late_answer_is_an_answer(hook: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that took a message after nobody waited any more does not get it again."""
    monkeypatch.setattr(channels, "APPRISE_WITHIN_S", 0.2)
    channel = service(f"json://127.0.0.1:{hook.port}/?rto=30")
    assert isinstance(channel, channels.AppriseService)
    answered, before = threading.Event(), hook.respond

    def slowly(request: Request) -> Answer:
        assert answered.wait(60)
        return before(request)

    hook.respond = slowly
    message = notice("tick1: slow")
    assert "no answer" in refused(channel, message).detail
    answered.set()
    assert channel._sending is not None
    channel._sending.join()
    sent(channel, message)
    assert len(hook.requests) == 1
    sent(channel, message)
    assert len(hook.requests) == 2


FILES = [
    ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general", False),
    ("slack://xoxb-1234-1234-abc124/#general", True),
    ("wxteams://abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz01234567890123456789", False),
    ("mailto://127.0.0.1:25?from=ticks@example.com&to=night@example.com", True),
]


@pytest.mark.parametrize(("url", "takes_files"), FILES)
def test_services_that_would_drop_files_are_not_given_any(url: str, takes_files: bool) -> None:  # noqa: FBT001 - a row of the table
    """Where a service takes no files, the text names them; that it takes some elsewhere changes nothing."""
    channel = service(url)
    assert isinstance(channel, channels.AppriseService)
    assert channel.takes_files == takes_files


def test_a_text_is_cut_to_what_a_service_takes(hook: Site) -> None:
    """The limit that apprise knows for a service is kept, with whole lines."""
    channel = service(f"json://127.0.0.1:{hook.port}/")
    assert isinstance(channel, channels.AppriseService)
    channel.units = 200
    sent(channel, notice("tick1: gaps", *(f"line {number} of many" for number in range(50))))
    body = json.loads(hook.requests[0].body)["message"].splitlines()
    assert body[0] == "line 0 of many"
    assert re.fullmatch(r"… \d+ more lines", body[-1])
    assert len("\n".join(["tick1: gaps", *body])) <= 200


BAD_URLS = [
    (f"nothing://me:{PASSWORD}@127.0.0.1/", "nothing"),
    (f"tgram://{PASSWORD}/", "tgram"),
    (f"slack://{PASSWORD}", "slack"),
    (f"jsons://me:{PASSWORD}@127.0.0.1/?verify=no", "verify=no"),
]


@pytest.mark.parametrize(("url", "words"), BAD_URLS)
def test_a_url_that_makes_no_sense_is_named_without_its_secrets(url: str, words: str) -> None:
    """The mistake tells which of ALERT_URLS it is and its scheme, and nothing else of it."""
    config = Config.model_validate({"alert_urls": ["json://127.0.0.1/", url]})
    (problem,) = problems_of(config)
    assert "ALERT_URLS[1]" in problem
    assert words in problem
    assert PASSWORD not in problem
    with pytest.raises(ConfigError) as error:
        open_channels(config)
    assert PASSWORD not in repr(error.value) + str(error.value)


NAMES = [
    ("mailto://me:{}@mail.example.com:2525/?to=a@example.org", "mailto mail.example.com (ALERT_URLS[0])"),
    ("json://127.0.0.1/hooks/{}", "json 127.0.0.1 (ALERT_URLS[0])"),
    ("ntfys://{}", "ntfys (ALERT_URLS[0])"),
    ("ntfys://ntfy.sh/{}", "ntfys ntfy.sh (ALERT_URLS[0])"),
    ("discord://4174216298/{}", "discord (ALERT_URLS[0])"),
    ("pagerduty://{0}AAAAAAAAAAAA@{0}BBBBB", "pagerduty (ALERT_URLS[0])"),
    ("tgram://123456789:AAbbCCddEEffGGhhIIjjKKllMMnnOOppQQr/12345/", "tgram (ALERT_URLS[0])"),
    ("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general", "slack (ALERT_URLS[0])"),
]


@pytest.mark.parametrize(("form", "name"), NAMES)
def test_a_channels_name_shows_no_secret(form: str, name: str) -> None:
    """A name tells the service, its host where that is one, and the place in the configuration."""
    channel = service(form.format("topic8c1fsecret"))
    assert channel.name == name
    assert "topic8c1fsecret" not in repr(channel)


def test_no_channel_is_configured() -> None:
    """Nothing is opened where nothing is configured."""
    assert open_channels(Config()) == []
    assert post.try_channels(Config()) == []


# --- Secrets -------------------------------------------------------------------------------------------------------


def _all_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], *more: object) -> str:
    printed = capfd.readouterr()
    records = [
        record.getMessage() + repr(record.__dict__)
        for record in caplog.records
        if not record.name.startswith("mail.")  # the mail server of this test
    ]
    return "\n".join([printed.out, printed.err, *records, *(f"{one} {one!r}" for one in more)])


def test_the_token_is_nowhere(
    api: BotApi, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every log wide open, through success and each failure, neither token nor proxy password is said."""
    monkeypatch.setattr(channels, "TELEGRAM_TIMEOUT_S", 0.2)
    caplog.set_level(logging.DEBUG)
    said: list[object] = []
    for answer in (None, *(row[0] for row in FAILURES.values()), failure(400, f"Bad Request: {TOKEN}")):
        api.always = answer
        channel = telegram(api)
        try:
            sent(channel, notice())
        except ChannelError as error:
            said += [
                error,
                error.detail,
                error.remedy,
                error.__cause__,
                error.__context__ and error.__suppress_context__,
            ]
        said.append(channel)
    proxied = telegram(api, proxy=f"http://me:{PASSWORD}@127.0.0.1:9")
    unproxied = refused(proxied, notice())
    text = _all_said(caplog, capfd, *said, unproxied, unproxied.detail, proxied)
    secret = TOKEN.partition(":")[2]
    assert secret not in text
    assert PASSWORD not in text
    assert len(api.messages) == 1


def test_passwords_of_services_are_nowhere(
    hook: Site, mailbox: Mailbox, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a service says of a failure is told, without any part of its address that could be a secret."""
    caplog.set_level(logging.DEBUG)
    mailbox.refusal = f"550 {PASSWORD} is wrong"
    hook.always = Answer(500, PASSWORD.encode())
    said: list[object] = []
    for url in (
        f"json://me:{PASSWORD}@127.0.0.1:{hook.port}/{PASSWORD}/",
        f"mailto://127.0.0.1:{mailbox.port}/?from={PASSWORD}@example.com&to=x@example.com&name={PASSWORD}",
        f"json://me:{PASSWORD}@127.0.0.1:1/{PASSWORD}",
    ):
        channel = service(url)
        error = refused(channel, notice())
        said += [channel, error, error.detail, error.remedy]
    assert PASSWORD not in _all_said(caplog, capfd, *said)


# --- The command ---------------------------------------------------------------------------------------------------


def test_alert_test_says_for_each_channel_how_it_went(
    programs: Programs, api: BotApi, mailbox: Mailbox, hook: Site
) -> None:
    """A line for each channel: sent, or what went wrong and what to do; the exit code is 0 only if all were sent."""
    keys: dict[str, object] = {
        "TELEGRAM_TOKEN": TOKEN,
        "TELEGRAM_CHAT_ID": CHAT,
        "TELEGRAM_API_URL": api.address,
        "ALERT_NAME": "tick1",
        "ALERT_URLS": [
            f"mailto://127.0.0.1:{mailbox.port}?from=a@example.com&to=b@example.com",
            f"json://me:{PASSWORD}@127.0.0.1:{hook.port}",
        ],
    }
    config = programs.config(**keys)
    well = programs.run("alert-test", "--config", config)
    assert (well.code, well.err) == (0, "")
    assert well.out.splitlines() == [
        f"ok      telegram {CHAT}: a message was sent.",
        "ok      mailto 127.0.0.1 (ALERT_URLS[0]): a message was sent.",
        "ok      json 127.0.0.1 (ALERT_URLS[1]): a message was sent.",
    ]
    expected = ("tick1: test message", "This is only a test: what this collector has to tell comes here.")
    assert api.messages[0].text == "\n".join(expected)
    assert (mailbox.messages[0]["Subject"], text_of(mailbox.messages[0]).strip()) == expected
    api.chats.clear()
    hook.always = Answer(401)
    ill = programs.run("alert-test", "--config", config)
    remedy = "Write any message to the bot first, or add it to the group; then check TELEGRAM_CHAT_ID"
    advice = "Check the address, user and password in ALERT_URLS[1]"
    reason = f"Failed to send JSON POST notification: Verification Failed., error=401; {advice}"
    assert (ill.code, ill.err) == (1, "")
    assert ill.out.splitlines() == [
        f"FAILED  telegram {CHAT}: Chat not found; {remedy}.",
        "ok      mailto 127.0.0.1 (ALERT_URLS[0]): a message was sent.",
        f"FAILED  json 127.0.0.1 (ALERT_URLS[1]): {reason}.",
    ]
    assert PASSWORD not in well.said + ill.said
    assert TOKEN.partition(":")[2] not in well.said + ill.said


@pytest.mark.parametrize(
    ("keys", "words"), [({}, "no channel"), ({"ALERT_URLS": [f"nothing://{PASSWORD}"]}, "ALERT_URLS[0]")]
)
def test_alert_test_without_a_usable_channel(programs: Programs, keys: dict[str, object], words: str) -> None:
    """Where nothing is configured, or nothing that makes sense, that is a mistake and not a failure."""
    ended = programs.run("alert-test", "--config", programs.config(**keys))
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.said
    assert PASSWORD not in ended.said


def test_a_channel_that_moved_passes_the_test_with_advice(api: BotApi) -> None:
    """The test message reaches the new number, and the line says what to change."""
    api.chats.add("-1009988")
    api.scripted.append(failure(400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-1009988))
    keys = {"telegram_token": TOKEN, "telegram_chat_id": "-555", "telegram_api_url": api.address}
    config = Config.model_validate(keys)
    (result,) = post.try_channels(config)
    assert (result.ok, "Put -1009988 into TELEGRAM_CHAT_ID" in result.detail) == (True, True)


def test_a_service_that_never_answers_does_not_hold_the_test(hook: Site, api: BotApi) -> None:
    """What hangs is told as that after the time that is given; the other channels are done."""
    hook.always = Answer(instead="hang")
    keys = {
        "telegram_token": TOKEN,
        "telegram_chat_id": CHAT,
        "telegram_api_url": api.address,
        "alert_urls": [f"json://127.0.0.1:{hook.port}?rto=3"],
    }
    config = Config.model_validate(keys)
    well, ill = post.try_channels(config, within_s=1.5)
    assert (well.ok, ill.ok, ill.detail) == (True, False, "no answer within 2 s")
