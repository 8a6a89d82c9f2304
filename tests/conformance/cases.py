"""Run the Autobahn cases against a server and print the result of each as JSON.

A program, run as `python -m tests.conformance.cases URL`: kosoku patches the Python that it runs in
to suit the cases, which were written for Python 2. This must not affect the test runner.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Final

from kosoku import FailureError, run_fuzzingclient

_COMPRESSION: Final = ["12.*", "13.*"]
"""Left out: the server never agrees to compress."""
_AT_ONCE: Final = 4


async def run(url: str) -> dict[str, tuple[str, str, int | None]]:
    """Return the result of each case: of its messages, of its end, and the server's close code."""
    try:
        results = await run_fuzzingclient(url, None, _COMPRESSION, concurrency=_AT_ONCE)
    except FailureError as failure:  # It returns the results of the other cases too.
        results = failure.results
    return {
        each.case_id: (each.behavior.value, each.behavior_close.value, each.remote_close_code)
        for each in results
    }


if __name__ == "__main__":
    json.dump(asyncio.run(run(sys.argv[1])), sys.stdout)
    sys.stdout.flush()
    # kosoku's threads outlive the interpreter and then sometimes abort the process. All results are
    # printed by now, so skip the shutdown of the interpreter.
    os._exit(0)
