"""What a refusal means and how long it asks to wait: the exchange's rules as a table, without any server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.refusals import LONGEST_BAN_S, Kind, refusal, told_wait_s, wait_s

AT_S = 1_784_000_055.0
"""2026-07-14, 03:34:15 UTC: 45 seconds before a minute's end."""
UNTIL_MS = int((AT_S + 500) * 1000)

TOLD: dict[str, tuple[str | None, str, float | None]] = {
    "nothing": (None, "", None),
    "empty": ("", "", None),
    "seconds": ("3", "", 3.0),
    "spaces around": (" 3 ", "", 3.0),
    "zero": ("0", "", 1.0),
    "a fraction": ("2.5", "", 2.5),
    "more than the longest ban": ("9999999", "", LONGEST_BAN_S),
    "digits without end": ("9" * 5000, "", LONGEST_BAN_S),
    "negative": ("-3", "", None),
    "with an exponent": ("1e9", "", None),
    "digits of another script": ("\N{ARABIC-INDIC DIGIT THREE}", "", None),
    "words": ("soon", "", None),
    "infinity": ("inf", "", None),
    "a date": ("Tue, 14 Jul 2026 03:35:40 GMT", "", 85.0),
    "a date that has passed": ("Tue, 14 Jul 2020 03:35:40 GMT", "", 1.0),
    "a date next year": ("Wed, 14 Jul 2027 03:35:40 GMT", "", LONGEST_BAN_S),
    "a year that no calendar holds": ("Tue, 14 Jul 99999 03:35:40 GMT", "", None),
    "a year beyond a machine's integer": ("Tue, 14 Jul 99999999999999999999 03:35:40 GMT", "", None),
    "an hour that no day has": ("Tue, 14 Jul 2026 25:61:61 GMT", "", None),
    "an offset beyond a day": ("Tue, 14 Jul 2026 03:35:40 +9999999999", "", None),
    "commas": (" , , ,", "", None),
    "the end in the text": (None, f"Way too much; IP banned until {UNTIL_MS}. Use streams.", 500.0),
    "the end is past": (None, "IP banned until 1000000000000", 1.0),
    "the end has too many digits": (None, "banned until 17840000550000", None),
    "both, the text later": ("2", f"IP banned until {UNTIL_MS}.", 500.0),
    "both, the header later": ("600", f"IP banned until {UNTIL_MS}.", 600.0),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_the_exchange_tells_is_read_in_every_shape(name: str) -> None:
    """Seconds and dates of RFC 9110, 10.2.3, and the text of error -1003; what is neither tells nothing."""
    header, message, seconds = TOLD[name]
    assert told_wait_s(header, AT_S, message) == seconds


@pytest.mark.parametrize(
    ("status", "kind", "least_s"),
    [
        (400, Kind.REFUSED, 60),
        (401, Kind.REFUSED, 60),
        (403, Kind.FORBIDDEN, 300),
        (404, Kind.REFUSED, 60),
        (407, Kind.FORBIDDEN, 60),
        (408, Kind.TROUBLE, 0),
        (418, Kind.BANNED, 120),
        (429, Kind.BANNED, 45),
        (451, Kind.BLOCKED, 300),
        (500, Kind.TROUBLE, 0),
        (503, Kind.TROUBLE, 0),
        (204, Kind.STRANGE, 60),
        (302, Kind.STRANGE, 60),
        (999, Kind.STRANGE, 60),
    ],
)
def test_each_status_has_one_meaning_and_a_time_of_its_own(status: int, kind: Kind, least_s: float) -> None:
    """Where nothing is told, 429 ends with the UTC minute and a ban lasts two minutes at least (rest-api.md)."""
    found = refusal(status)
    assert found.kind is kind
    assert found.meaning
    assert found.remedy
    assert wait_s(status, None, AT_S) == least_s


@pytest.mark.parametrize("status", [403, 418, 429, 503])
def test_what_is_told_counts_before_the_table(status: int) -> None:
    """`Retry-After: 3` is three seconds, whatever the status."""
    assert wait_s(status, "3", AT_S) == 3


@given(st.text(max_size=60), st.text(max_size=60), st.floats(0, 4e9))
def test_whatever_is_told_is_between_a_second_and_three_days(header: str, message: str, wall_s: float) -> None:
    """No text makes a wait that is none or that has no end."""
    told_s = told_wait_s(header, wall_s, message)
    assert told_s is None or 1 <= told_s <= LONGEST_BAN_S
