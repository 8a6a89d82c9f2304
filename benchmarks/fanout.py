"""Compare the CPU, delay and memory that a delivered tick costs in Tickcast and its peers.

Servers run one at a time, pinned to the first core. Clients and publisher share the second.
benchmarks/README.md explains the measurements.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import peers
import report
from cache import CannotInstall
from measure import Failed, Figures, measure
from processes import LOAD_CORE, SERVER_CORE, set_up_load_process, wait_for_quiet
from workloads import BY_NAME, WORKLOADS, Workload


def main() -> None:
    options = parse()
    set_up_load_process(options.nice)
    present = install(options.peers)
    if options.install:
        return
    variants = rows(present, options.pace)
    works = [BY_NAME[name] for name in options.only] if options.only else list(WORKLOADS)
    store_core = SERVER_CORE if options.store == "server" else LOAD_CORE
    runs: dict[tuple[str, str], list[Figures | str]] = {
        (work.name, row): [] for work in works for row in variants
    }
    print(report.HEADER, flush=True)
    for turn in range(options.rounds):
        for work in works:
            # Start each round with a different server, so that any drift affects all equally.
            for row in rotated(list(variants), turn):
                result = undisturbed(variants[row], work, options, store_core)
                runs[work.name, row].append(result)
                print(report.row(work.name, row, result), flush=True)
    medians = {key: report.median(results) for key, results in runs.items()}
    print(f"\nMedians of {options.rounds}:\n{report.table(medians)}")
    subject = next((row for row in variants if row.startswith("tickcast")), "")
    if subject:
        print(f"\n{subject} against what is asked of it:\n{report.verdicts(medians, subject)}")
    if options.json:
        save(options.json, runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="show medians of so many")
    parser.add_argument(
        "--peers", default=",".join(peers.NAMES), help="which, by name: %(default)s"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[work.name for work in WORKLOADS],
        help="a workload, repeatable",
    )
    parser.add_argument(
        "--pace", type=float, action="append", help="a flush_pace for Tickcast, repeatable"
    )
    parser.add_argument(
        "--store",
        choices=("load", "server"),
        default="load",
        help="whose core Tickcast's store runs on: %(default)s",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait before each for others to leave the machine alone: %(default)s",
    )
    parser.add_argument(
        "--again",
        type=int,
        default=2,
        metavar="TIMES",
        help="how often to repeat a measurement that others disturbed: %(default)s",
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="run at another priority: -10 keeps others on the machine at bay (root only)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures here")
    parser.add_argument("--install", action="store_true", help="set the peers up, and end")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - set(peers.NAMES):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return options


def install(names: Sequence[str]) -> list[peers.Peer]:
    """Install the peers. Print and return those available, and print why others are skipped."""
    present = []
    for name in names:
        peer = peers.load(name)
        try:
            peer.install()
        except CannotInstall as error:
            print(f"{name}: skipped: {error}")
            continue
        print(f"{name}: {peer.about}", flush=True)
        present.append(peer)
    return present


def rows(present: Sequence[peers.Peer], paces: Sequence[float] | None) -> dict[str, peers.Peer]:
    """Return the rows of the table: the peers, with Tickcast once for each pace."""
    variants: dict[str, peers.Peer] = {}
    for peer in present:
        if peer.name == "tickcast" and paces:
            for pace in paces:
                variant = peers.load("tickcast")
                variant.environment["TICKCAST_FLUSH_PACE"] = str(pace)
                variants[f"tickcast pace {pace:g}"] = variant
        else:
            variants[peer.name] = peer
    return variants


def rotated(names: list[str], turn: int) -> list[str]:
    """Return the names, starting with a different one each turn."""
    start = turn % len(names)
    return names[start:] + names[:start]


def undisturbed(
    peer: peers.Peer, work: Workload, options: argparse.Namespace, store_core: int
) -> Figures | str:
    """Measure, repeatedly if other processes interfere, and return the least disturbed result."""
    best: Figures | str = ""
    for _ in range(1 + options.again):
        wait_for_quiet(options.patience)
        result = attempt(peer, work, options.seconds, store_core)
        if isinstance(result, str):
            return result
        if isinstance(best, str) or result.others_load < best.others_load:
            best = result
        if best.others_load <= report.NOISY:
            break
    return best


def attempt(peer: peers.Peer, work: Workload, seconds: float, store_core: int) -> Figures | str:
    """Return one measurement, or the reason why it failed."""
    gc.collect()
    # A pause of the garbage collector here would look like a pause of the server.
    gc.disable()
    try:
        return measure(peer, work, seconds, store_core)
    except Failed as error:
        return str(error)
    finally:
        gc.enable()


def save(path: Path, runs: dict[tuple[str, str], list[Figures | str]]) -> None:
    """Write all runs to a file as JSON."""
    found = [
        {"workload": workload, "server": row, "runs": [as_json(result) for result in results]}
        for (workload, row), results in runs.items()
    ]
    path.write_text(json.dumps(found, indent=1) + "\n")


def as_json(result: Figures | str) -> object:
    return {"failed": result} if isinstance(result, str) else result._asdict()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
