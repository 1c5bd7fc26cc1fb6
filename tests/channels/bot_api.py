"""Telegram's Bot API on loopback: getMe, sendMessage, sendDocument and sendPhoto, refused for the reasons Telegram has.

Written from core.telegram.org/bots/api: form or multipart bodies, UTF-8, chats that exist, HTML of the listed tags and
entities, 4096 and 1024 UTF-16 units after parsing. Answers and error texts have Telegram's shapes.
"""

import email
import email.policy
import html
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import parse_qsl, unquote

from .web import Answer, Request, Site

TOKEN = "7310246501:AAGmPlantedTokenOfNobody_x3-Q9vLw0k"  # the form of a real one
CHAT = "4242001"
GROUP = "-100777001"
TEXT_UNITS, CAPTION_UNITS, FILE_BYTES = 4096, 1024, 50_000_000
TAGS = {
    "b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "tg-spoiler", "code", "pre", "a", "blockquote",
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One message that a chat got: what people read."""

    chat: str
    text: str
    """Text or caption, after parsing."""
    bold: str
    quiet: bool
    at_s: float
    file_name: str = ""
    file: bytes = b""

    @property
    def title(self) -> str:
        """The first line."""
        return self.text.partition("\n")[0]


class RefusedError(Exception):
    """400 with a description."""


@dataclass
class BotApi(Site):
    """The server, and what its chats got."""

    respond: Callable[[Request], Answer] = field(init=False)
    token: str = TOKEN
    chats: set[str] = field(default_factory=lambda: {CHAT, GROUP})
    messages: list[Message] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.respond = self._respond

    def methods(self) -> list[str]:
        """Return the method of each request so far."""
        return [request.path.rpartition("/")[2] for request in self.requests]

    def titles(self) -> list[str]:
        """Return the first line of each message."""
        return [message.title for message in self.messages]

    def _respond(self, request: Request) -> Answer:
        found = re.fullmatch(r"/bot([^/]+)/(\w+)", request.path)
        if found is None or re.fullmatch(r"\d+:[\w-]{30,}", unquote(found[1])) is None:
            return failure(404, "Not Found")
        if unquote(found[1]) != self.token:
            return failure(401, "Unauthorized")
        try:
            return _ok(self._done(found[2], request))
        except RefusedError as error:
            return failure(400, f"Bad Request: {error}")

    def _done(self, method: str, request: Request) -> object:
        if method == "getMe":
            return {"id": 7310246501, "is_bot": True, "first_name": "Ticks", "username": "ticks_bot"}
        fields, files = fields_of(request)
        chat = fields.get("chat_id", "")
        if chat not in self.chats:
            raise RefusedError("chat not found")
        is_text = method == "sendMessage"
        text, bold = parsed(fields.get("text" if is_text else "caption", ""), fields.get("parse_mode", ""))
        units = len(text.encode("utf-16-le")) // 2
        if is_text and not visible(text):
            raise RefusedError("message text is empty")
        if units > (TEXT_UNITS if is_text else CAPTION_UNITS):
            raise RefusedError("message is too long" if is_text else "message caption is too long")
        if not is_text and not files:
            raise RefusedError("there is no document in the request")
        if method == "sendPhoto" and not files[0][1].startswith(b"\x89PNG"):
            raise RefusedError("IMAGE_PROCESS_FAILED")
        name, content = files[0] if files else ("", b"")
        quiet = fields.get("disable_notification") in ("true", "True")
        with self._lock:
            self.messages.append(Message(chat, text, bold, quiet, time.monotonic(), name, content))
            number = len(self.messages)
        place = {"id": int(chat) if chat.lstrip("-").isdigit() else 1, "type": "private"}
        return {"message_id": number, "date": 1_790_000_000, "chat": place}


def _ok(result: object) -> Answer:
    return Answer(body=json.dumps({"ok": True, "result": result}).encode())


def failure(status: int, description: str, **parameters: int) -> Answer:
    """Return an error in Telegram's shape."""
    body: dict[str, object] = {"ok": False, "error_code": status, "description": description}
    if parameters:
        body["parameters"] = parameters
    return Answer(status, json.dumps(body).encode())


def too_many(retry_after_s: int) -> Answer:
    """Return a 429."""
    return failure(429, f"Too Many Requests: retry after {retry_after_s}", retry_after=retry_after_s)


BAD_GATEWAY = Answer(502, b"<html><head><title>502 Bad Gateway</title></head>" + b"<p>x</p>" * 50_000, "text/html")


def fields_of(request: Request) -> tuple[dict[str, str], list[tuple[str, bytes]]]:
    """Return a body's fields and files; raise where it is not UTF-8."""
    if request.content_type.startswith("multipart/form-data"):
        head = f"Content-Type: {request.content_type}\r\n\r\n".encode()
        message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
        fields, files = dict[str, str](), list[tuple[str, bytes]]()
        for part in message.iter_parts() if isinstance(message, EmailMessage) else ():
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            if part.get_filename() is not None:
                files.append((str(part.get_filename()), content))
            else:
                fields[str(part.get_param("name", header="content-disposition"))] = _utf8(content)
        return fields, files
    return dict(parse_qsl(_utf8(request.body), keep_blank_values=True, errors="strict")), []


def _utf8(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError("strings must be encoded in UTF-8") from None


_TOKENS = re.compile(r"<(/?)([^<>\s]*)([^<>]*)>|(<)|&(#x[0-9a-fA-F]+|#[0-9]+|lt|gt|amp|quot);|([^<&]+|&)")


def parsed(text: str, parse_mode: str) -> tuple[str, str]:
    """Return what people read, and the bold part of it; raise for HTML that Telegram does not take."""
    if parse_mode == "":
        return text.strip(), ""
    if parse_mode != "HTML":
        raise RefusedError("unsupported parse_mode")
    plain, bold, opened = list[str](), list[str](), list[str]()
    for closing, tag, attributes, lone, entity, words in _TOKENS.findall(text):
        if lone or (tag == "" and words == "" and entity == ""):
            raise RefusedError("can't parse entities: Unclosed start tag")
        if tag and tag not in TAGS:
            raise RefusedError(f'can\'t parse entities: Unsupported start tag "{tag}"')
        if tag and attributes and tag not in ("a", "code", "blockquote"):
            raise RefusedError("can't parse entities: attributes")
        if tag and not closing:
            opened.append(tag)
        elif tag and (not opened or opened.pop() != tag):
            raise RefusedError("can't parse entities: Unmatched end tag")
        piece = html.unescape(f"&{entity};") if entity else words
        plain.append(piece)
        bold.append(piece if "b" in opened else "")
    if opened:
        raise RefusedError(f"can't parse entities: Can't find end tag corresponding to start tag \"{opened[-1]}\"")
    return "".join(plain).strip(), "".join(bold).strip()


def visible(text: str) -> bool:
    """Tell whether Telegram sees anything in a text."""
    return re.search(r"[^\s\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\u2800\u3164\uffa0\ufeff]", text) is not None
