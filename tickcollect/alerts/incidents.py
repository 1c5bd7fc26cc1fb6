"""From what happens to what is told: one message per incident, in words that help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["info", "warning", "error"]

KINDS: dict[str, tuple[str, Level]] = {
    "started": ("collecting began, and what a crash left was taken up", "info"),
    "stopped": ("collecting ended, and what is still open", "info"),
    "disconnected": ("an exchange could not be reached for some time, and is again", "warning"),
    "gap": ("rows were missing, and what became of them", "warning"),
    "lost": ("rows are missing and history cannot give them", "error"),
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
class Notice:
    """One message to the people concerned."""

    kind: str
    """One of `KINDS`."""
    level: Level
    title: str
    """One line of plain text: which machine, and what."""
    lines: tuple[str, ...]
    """What more there is to say, one line of plain text each; may be empty."""
    incident: str
    """The same for the beginning and the end of one incident, for channels that can pair them."""
    ended: bool
    """This notice ends its incident."""
    attachments: tuple[Path, ...] = ()
    """Files to send along."""
