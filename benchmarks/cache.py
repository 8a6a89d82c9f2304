"""Install the peers into a cache folder outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 600
_CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PYTHON_PEERS = (
    "picows",
    "python-socketio",
    "starlette",
    "uvicorn[standard]",
    "uvloop",
    "websockets",
)


class CannotInstall(Exception):
    """A peer can't be installed here; the message says why."""


def folder(name: str) -> Path:
    """Return a folder of the cache, creating it if necessary."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "tickcast-bench" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(command: Sequence[str | Path], cwd: Path | None = None, **environment: str) -> str:
    """Run a command and return its output.

    Raises:
        CannotInstall: the command is missing, fails or takes too long.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"{words[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(f"{' '.join(words[:3])} failed: {said[-1] if said else '?'}")
    return done.stdout.strip()


def python() -> Path:
    """Return the Python interpreter of the environment for the Python peers, creating it if needed.

    They share Tickcast's constraints, so all use the same uvicorn, uvloop and websockets.
    """
    environment = folder("python")
    interpreter, stamp = environment / "bin" / "python", environment / "installed"
    wanted = "\n".join(PYTHON_PEERS)
    if not stamp.exists() or stamp.read_text() != wanted:
        run([sys.executable, "-m", "venv", "--clear", environment])
        options = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run([interpreter, *options, *PYTHON_PEERS], PIP_CONSTRAINT=str(_CONSTRAINTS))
        stamp.write_text(wanted)
    return interpreter


def python_version(package: str) -> str:
    """Return the version of a package in that environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return run([python(), "-c", code])
