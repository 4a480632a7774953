"""Mutate files of every kind and read them: `python -m tests.fuzzing --seconds 60 --seed 1 --out FOLDER`.

A child process reads, with a limit on its memory. The parent ends it when an input takes too long, and starts another.
Each failure is written to FOLDER as a reproducer. The exit code is 1 when there is any.
"""

import argparse
import collections
import random
import sys
import time
from pathlib import Path

from tests.fuzzing.mutation import mutated
from tests.fuzzing.targets import targets
from tests.fuzzing.watchdog import Watched, audio_seeds


def main() -> int:
    """Run and print a table of counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("build/fuzzing"))
    options = parser.parse_args()
    chosen = [target for target in targets(audio_seeds()) if options.only in target.name]
    counts = {target.name: collections.Counter[str]() for target in chosen}
    watched, rng = Watched(options.out.absolute() / "input"), random.Random(options.seed)
    end, number = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        target = chosen[number % len(chosen)]
        content = mutated(target.seed, rng)
        result = watched.read(target.name, content)
        kind = result.split(":")[0].split(" (")[0]
        counts[target.name][kind] += 1
        if kind not in ("accepted", "clean error"):
            place = options.out / f"{number:07d}-{target.name.replace(' ', '-')}"
            place.mkdir(parents=True, exist_ok=True)
            (place / target.file).write_bytes(content)
            (place / "result.txt").write_text(f"{result}\n", encoding="utf-8", errors="replace")
            print(f"{target.name}: {result}  -> {place}", file=sys.stderr)
        number += 1
    watched.stop()
    return _show(counts)


def _show(counts: dict[str, collections.Counter[str]]) -> int:
    kinds = ("clean error", "accepted", "internal error", "crash", "hang", "over 2 GB")
    print(f"{'target':<20}" + "".join(f"{kind:>16}" for kind in kinds))
    for name, found in counts.items():
        print(f"{name:<20}" + "".join(f"{found[kind]:>16}" for kind in kinds))
    whole = sum(counts.values(), collections.Counter[str]())
    print(f"{'sum ' + str(whole.total()):<20}" + "".join(f"{whole[kind]:>16}" for kind in kinds))
    return int(any(whole[kind] for kind in kinds[2:]))


if __name__ == "__main__":
    sys.exit(main())
