"""Fuzz the parsers: `python -m tests.fuzz.run [--seconds N] [TARGET…]`; `make fuzz` calls it.

Each target runs in a separate process, because the fuzzer ends its process. Inputs that reach new
paths are saved in `build/fuzz/TARGET`, and the next run begins with them. A failing input is saved
as `build/fuzz/TARGET-…`.

Without atheris, inputs are random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None:
    with atheris.instrument_imports(include=["feed", "producers"]):
        from tests.fuzz.targets import TARGETS, Target
else:
    from tests.fuzz.targets import TARGETS, Target

from tests.fuzz.inputs import inputs

CORPORA = Path("build/fuzz")
INPUT_MAX_BYTES = 64 * 1024
INPUT_MAX_S = 10
ROUND = 1000


def main() -> None:
    """Fuzz the named targets, or all of them, and report those that failed."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(names))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--here", action="store_true", help="one target, in this process")
    given = parser.parse_args()
    if unknown := set(given.targets) - set(names):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = given.targets or names
    if given.here:
        (target,) = (target for target in TARGETS if target.name == chosen[0])
        (fuzz if atheris is not None else try_by_chance)(target, given.seconds)
        return
    command = [sys.executable, "-m", "tests.fuzz.run", "--here", f"--seconds={given.seconds}"]
    failed = []
    for name in chosen:
        print(f"\n== {name}", flush=True)
        if subprocess.run([*command, name], check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else f"\n{len(chosen)} targets held")
    sys.exit(bool(failed))


def fuzz(target: Target, seconds: int) -> None:
    """Let atheris search for a failing input; never returns."""
    corpus = CORPORA / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in target.seeds:
        (corpus / sha256(data).hexdigest()[:16]).write_bytes(data)
    options = {
        "max_total_time": seconds,
        "max_len": INPUT_MAX_BYTES,
        "timeout": INPUT_MAX_S,
        "artifact_prefix": f"{CORPORA}/{target.name}-",
        "print_final_stats": 1,
        "verbosity": 0,
    }
    words = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *words, str(corpus)], target.check)
    atheris.Fuzz()


def try_by_chance(target: Target, seconds: int) -> None:
    """Try round after round of random inputs."""
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:

        @seed(tried)
        @settings(
            max_examples=ROUND,
            deadline=INPUT_MAX_S * 1000,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs(target))
        def round_of_inputs(data: bytes) -> None:
            target.check(data)

        round_of_inputs()
        tried += ROUND
    print(f"{tried:,} inputs")


if __name__ == "__main__":
    main()
