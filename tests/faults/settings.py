"""Faults of the configuration, of secrets and of names (C1 to C3)."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tickcollect.dataset.replay import Answer, Cut, Request

from .exchange import altered
from .network import replace_messages
from .scene import Case, Scene, UnmetError

MISTAKES: Sequence[tuple[str, str]] = (
    ("", "empty"), ("{", "not JSON"), ("[]", "not an object"), ('{"DATA_DIRR": "x"}', "DATA_DIR"),
    ('{"ROTATE_SIZE": "huge"}', "ROTATE_SIZE"), ('{"BACKFILL": "yes"}', "BACKFILL"),
    ('{"BACKFILL": true, "BACKFILL": false}', "BACKFILL"), ('{"TELEGRAM_TOKEN": "1:x"}', "TELEGRAM_CHAT_ID"),
)  # fmt: skip
"""A configuration each, and what its refusal must name. Their full table is tests/test_config.py."""


async def mistaken(scene: Scene) -> None:
    """Start others with configurations that cannot be meant."""
    connections = scene.proxy.accepted
    for text, named in MISTAKES:
        path = scene.directory / "config.json"
        path.write_text(text)
        path.chmod(0o600)
        environment = dict.fromkeys(scene.target.settings, "")
        other = scene.directory / "elsewhere"
        code, output = await scene.start_another(scene.command("--config", str(path), data_dir=other), **environment)
        if code != 2 or named not in output or "Traceback" in output:
            raise UnmetError(f"{text!r} is refused with code 2, naming {named}; code {code}: {output[-300:]}")
        if other.exists():
            raise UnmetError(f"nothing is made before {text!r} is refused")
    if scene.proxy.accepted > connections:
        raise UnmetError("nobody is connected to before the configuration is right")


async def secrets_stay_secret(scene: Scene) -> None:
    """Run with everything in the log, through failures of every kind; the judge looks for the planted secrets."""
    await scene.stop()
    scene.settings = {"TICKCOLLECT_LOG_LEVEL": "DEBUG", "TICKCOLLECT_LOG_FILE": str(scene.directory / "run.log")}
    await scene.start()
    await scene.until_current()
    scene.rest = lambda _, __: Answer(503, b'{"code":-1008,"msg":"Server is overloaded"}')
    scene.handshake = lambda _, __: Answer(500, b"") if len(scene.handshakes_s) % 2 else None
    scene.server.disconnect(Cut())
    await scene.until_current()
    scene.rest, scene.handshake = None, None
    await scene.kill()
    await scene.start()


async def readable_config(scene: Scene) -> None:
    """Keep secrets in a file that everybody may read."""
    path = scene.directory / "config.json"
    path.write_text(json.dumps({"BINANCE_API_KEY": scene.target.settings["TICKCOLLECT_BINANCE_API_KEY"]}))
    path.chmod(0o644)
    scene.provoked = len(scene.output_path.read_text())
    await scene.stop()
    await scene.start()  # it reads config.json in its working directory
    await scene.until_said("chmod 600", within_s=20)


HOSTILE = ("../../etc/cron.d/x", "BTCUSDT/../..", "/tmp/x", "BTC\nUSDT", "=cmd|'/c calc'!A0", "", "A" * 300, "..")


async def hostile_arguments(scene: Scene) -> None:
    """Ask for symbols that are paths, formulas or line breaks."""
    before = tree(scene.directory.parent)
    for symbol in HOSTILE:
        code, output = await scene.start_another(scene.command("--symbol", symbol))
        if code != 2 or "Traceback" in output:
            raise UnmetError(f"{symbol!r} is refused with code 2; code {code}: {output[-300:]}")
    made = {path for path in tree(scene.directory.parent) - before if "cron" in path or path.endswith("/x")}
    if made:
        raise UnmetError(f"no file is made from a hostile name; there are {made}")


def tree(directory: Path) -> set[str]:
    """Return the entries of a directory."""
    return {entry.path for entry in os.scandir(directory)}


async def hostile_listing(scene: Scene) -> None:
    """Let the exchange itself list symbols that are paths, and ask for one."""

    def rest(request: Request, answer: Answer) -> Answer:
        if not request.path.endswith("exchangeInfo"):
            return answer
        info = json.loads(answer.body)
        info["symbols"] += [{**info["symbols"][0], "symbol": name} for name in HOSTILE]
        return answer._replace(body=json.dumps(info).encode())

    scene.rest = rest
    await scene.stop()
    code, output = await scene.start_another(scene.command("--symbol", HOSTILE[0]))
    if code != 2 or "Traceback" in output:
        raise UnmetError(f"a path is refused even if the exchange lists it; code {code}: {output[-300:]}")
    await scene.start()


async def hostile_fields(scene: Scene) -> None:
    """Send prices and quantities that would be another column, another row, or a formula."""
    values = ["1,2", "1\n2", "1\r2", '"1"', "=1+1", "@SUM(A1)", "\u202e1", "", " 1", "1e5", "0x10", "-1"]
    makers = [partial(altered, fields={field: value}) for value in values for field in ("p", "q")]
    await replace_messages(scene, makers)


CASES: Sequence[Case] = (
    Case("mistaken-config", "C1", "eight configurations that cannot be meant",
         "refused with code 2 and the key, before anything is connected or made", mistaken, quick=True),
    Case("secrets", "C2", "everything is logged, everything fails", "no secret is in any output", secrets_stay_secret,
         quick=True),
    Case("readable-config", "C2", "others may read the file with the secrets", "warned, with the command that helps",
         readable_config, "chmod 600"),
    Case("hostile-arguments", "C3", "symbols that are paths, formulas, line breaks", "refused with code 2",
         hostile_arguments, quick=True),
    Case("hostile-listing", "C3", "the exchange lists a path as a symbol", "refused all the same", hostile_listing),
    Case("hostile-fields", "C3", "prices that would be another column or row", "quarantine; the rows are fetched",
         hostile_fields, "quarantine", quick=True),
)  # fmt: skip
