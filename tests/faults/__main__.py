"""The command of the fault kit: `python -m tests.faults --help`."""

import asyncio
import json
import random
import sys
from collections.abc import Callable, Sequence

import click

from . import disk, lies, network, process, settings, together
from .judge import Score
from .scene import Case, play
from .target import TICKCOLLECT, Target, target_of

CASES: Sequence[Case] = (*network.CASES, *lies.CASES, *process.CASES, *disk.CASES, *settings.CASES, *together.CASES)

COLUMNS = {
    "sent": "sent", "stored": "stored", "twice": "duplicates", "order": "out_of_order", "torn": "torn",
    "alter": "altered", "lost": "lost", "stated": "stated",
}  # fmt: skip
"""The columns of the scorecard, and what of a `Score` stands there."""


@click.command(context_settings={"max_content_width": 100})
@click.option("--list", "listed", is_flag=True, help="List the faults, and what must happen.")
@click.option("--run", "names", multiple=True, help="Run this fault; repeatable.")
@click.option("--all", "every", is_flag=True, help="Run every fault (for another target: every one that it can meet).")
@click.option(
    "--target",
    default=TICKCOLLECT.name,
    show_default=True,
    help="tickcollect, python-binance, cryptofeed, unicorn, or a command with {ws_url} {rest_url} {symbol} {data_dir}.",
)
@click.option("--python", default=sys.executable, help="The Python of the venv in which a peer is installed.")
@click.option("--seed", type=int, help="Repeat a run.  [default: another one each time]")
@click.option("--jobs", default=4, show_default=True, help="Faults at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
def main(names: Sequence[str], target: str, python: str, seed: int | None, jobs: int, **flags: bool) -> None:
    """Provoke faults and judge what a collector makes of them. The exit code is 1 if one was not met."""
    known = {case.name: case for case in CASES}
    if flags["listed"]:
        for case in CASES:
            click.echo(f"{case.group:4} {case.name:22} {case.what}\n{'':27} must: {case.must}")
        return
    judged = target_of(target, python)
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no such fault: {', '.join(unknown)}; --list shows them")
    cases = [case for case in CASES if case.name in names or (flags["every"] and fits(case, judged))]
    if not cases:
        raise click.UsageError("name faults with --run NAME, or --all")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}, target {judged.name}, {len(cases)} faults", err=flags["as_json"])
    if not flags["as_json"]:
        click.echo(f"{'fault':24}" + "".join(f"{head:>7}" for head in COLUMNS) + "   told")
    scores = asyncio.run(play_all(cases, judged, seed, jobs, None if flags["as_json"] else show))
    if flags["as_json"]:
        click.echo(json.dumps({"seed": seed, "target": target, "scores": [score.as_dict() for score in scores]}))
    else:
        passed, skipped = sum(score.passed for score in scores), sum(bool(score.skipped) for score in scores)
        click.echo(f"{passed} of {len(scores)} met, {skipped} skipped")
    sys.exit(any(score.failures for score in scores))


def fits(case: Case, target: Target) -> bool:
    """Tell whether a fault means something for a target."""
    return target.keeps_journal or case.peers


async def play_all(
    cases: Sequence[Case], target: Target, seed: int, jobs: int, tell: Callable[[Score], None] | None = None
) -> list[Score]:
    """Play cases, `jobs` at a time, and `tell` each score when it is there."""
    free = asyncio.Semaphore(jobs)

    async def one(case: Case) -> Score:
        async with free:
            score = await play(case, target, seed)
        if tell is not None:
            tell(score)
        return score

    return list(await asyncio.gather(*(one(case) for case in cases)))


def show(score: Score) -> None:
    """Print one line of the scorecard, and what was wrong."""
    if score.skipped:
        click.echo(f"{score.case:24} skipped: {score.skipped}")
        return
    numbers = "".join(f"{getattr(score, name):>7}" for name in COLUMNS.values())
    click.echo(f"{score.case:24}{numbers}   {score.told[:110] if score.noticed else '(nothing)'}")
    for failure in score.failures:
        click.echo(f"{'':24}  NOT MET: {failure}")


if __name__ == "__main__":
    main()
