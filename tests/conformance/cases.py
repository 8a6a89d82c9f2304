"""Runs the Autobahn cases against a server, and prints what came of each as JSON.

A program, run as `python -m tests.conformance.cases URL`: kosoku bends the Python that it runs in
towards the cases, which were written for Python 2. The test runner should be spared that.
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
    """What came of each case: how messages went, how the end went, and the server's close code."""
    try:
        results = await run_fuzzingclient(url, None, _COMPRESSION, concurrency=_AT_ONCE)
    except FailureError as failure:  # It brings the results of the others as well.
        results = failure.results
    return {
        each.case_id: (each.behavior.value, each.behavior_close.value, each.remote_close_code)
        for each in results
    }


if __name__ == "__main__":
    json.dump(asyncio.run(run(sys.argv[1])), sys.stdout)
    sys.stdout.flush()
    # kosoku's threads outlive the interpreter, and then abort the process now and then. All is said
    # by now, so the interpreter is not taken down at all.
    os._exit(0)
