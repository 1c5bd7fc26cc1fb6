"""Run one fuzz target for some time: `python -m tests.fuzz frames --seconds 60`.

With atheris the search is guided by what inputs reach. `--blind` only mutates, faster.
An input that breaks a promise is written to `fuzz-TARGET.bin`, and the run ends with its traceback.
"""

import argparse
import importlib
import random
import sys
import time
from collections import Counter
from pathlib import Path

BATCH = 1000


def blind(name: str, seconds: float, seed: int) -> tuple[int, Counter[str]]:
    """Mutate the target's seeds at random; return how many inputs there were and where they ended."""
    from .targets import TARGETS, mutated

    target, chance = TARGETS[name], random.Random(seed)
    ends: Counter[str] = Counter()
    inputs = 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for _ in range(BATCH):
            data = mutated(chance.choice(target.seeds), target.words, chance)
            try:
                ends.update(target.run(data))
            except BaseException:
                Path(f"fuzz-{name}.bin").write_bytes(data)
                raise
        inputs += BATCH
    return inputs, ends


def guided(name: str, seconds: float, seed: int) -> None:
    """Let atheris search; it ends the process itself."""
    atheris = importlib.import_module("atheris")  # an extra, and without types
    with atheris.instrument_imports(include=["tickcollect"]):
        from .targets import SCRATCH, TARGETS, mutated

    target = TARGETS[name]
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        return mutated(data, target.words, random.Random(number))[:longest]

    options = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-artifact_prefix=fuzz-{name}-", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.run, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz one target.")
    parser.add_argument("target", choices=("frames", "salvage", "journal", "config"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--blind", action="store_true", help="without atheris")
    wanted = parser.parse_args()
    sys.stdout.write(f"{wanted.target}, seed {wanted.seed}\n")
    if wanted.blind:
        inputs, ends = blind(wanted.target, wanted.seconds, wanted.seed)
        sys.stdout.write(f"{inputs:,} inputs: {', '.join(f'{name} {count:,}' for name, count in ends.items())}\n")
    else:
        guided(wanted.target, wanted.seconds, wanted.seed)


if __name__ == "__main__":
    main()
