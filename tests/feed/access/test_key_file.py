"""A large file of keys is reloaded by another process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from feed.access import key_file
from feed.access.authenticator import Authenticator
from feed.access.entitlements import Entitlements, Grant, Proof
from feed.access.key_file import KeyFile
from feed.access.keys import hash_secret, parse_keys
from tests.conftest import until
from tickcast.settings import Settings
from tickcast.wire.errors import InvalidSettings

KEYS = 1000
HASH = hash_secret("not a secret")


def text_of(count: int, **more: str) -> str:
    """Return the text of a file of keys, with more lines for some of them, by id."""
    return "".join(
        f'[keys.k{number}]\nname = "n{number}"\nhash = "{HASH}"\nsymbols = ["S{number}-*", "ES"]\n'
        f"created = 2026-11-24T12:00:00+02:00\n{more.get(f'k{number}', '')}\n"
        for number in range(count)
    )


def write(path: Path, text: str) -> None:
    """Replace a file, so that a check notices the change."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text_of(KEYS))
    return path


@pytest.fixture
def never_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process fail if it parses keys itself."""

    def parse(text: str, source: str) -> None:
        raise AssertionError("parsed where clients wait")

    monkeypatch.setattr(key_file, "parse_keys", parse)


@pytest.mark.usefixtures("never_here")
async def test_a_reload_shares_unchanged_keys(path: Path) -> None:
    known = parse_keys(text_of(KEYS, k1='channels = ["quotes"]'))
    keys = await KeyFile(path).reload(known)
    assert keys == parse_keys(text_of(KEYS))
    assert keys is not None
    assert list(keys) == list(known)
    assert keys["k2"] is known["k2"]
    assert keys["k1"] != known["k1"]


@pytest.mark.usefixtures("never_here")
async def test_an_invalid_file_is_reported(path: Path) -> None:
    write(path, text_of(KEYS, k7='symbols = ["B*C"]'))
    with pytest.raises(InvalidSettings, match=r"keys\.toml: not TOML"):
        await KeyFile(path).reload({})


async def test_the_authenticator_follows_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Authenticator(Settings(auth=str(path)))
    parsed = 0

    def parse(text: str, source: str) -> None:
        nonlocal parsed
        parsed += 1

    monkeypatch.setattr(key_file, "parse_keys", parse)
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    watching = asyncio.create_task(gate.watch_keys(changed))
    grant = Grant(Proof.KEY, "k3", Entitlements())
    try:
        assert gate.renewed(grant) is not None
        write(path, text_of(KEYS, k3="revoked = 2026-11-24T13:00:00Z"))
        await until(lambda: gate.renewed(grant) is None)
        assert changes == 1
        write(path, text_of(KEYS) + "[keys.broken")
        await until(lambda: "the keys stay as they were" in caplog.text)
        assert gate.renewed(grant) is None
        write(path, text_of(KEYS))
        await until(lambda: gate.renewed(grant) is not None)
        assert (changes, parsed) == (2, 0)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        gate.shut_down()


async def test_keys_stay_while_the_reading_process_fails(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("feed.access.authenticator._AGAIN_S", 0.05)
    gate = Authenticator(Settings(auth=str(path)))
    watching = asyncio.create_task(gate.watch_keys(lambda: None))
    grant = Grant(Proof.KEY, "k3", Entitlements())
    try:
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", os.devnull)
            write(path, text_of(KEYS, k3="revoked = 2026-11-24T13:00:00Z"))
            await until(lambda: "trying again" in caplog.text)
            assert gate.renewed(grant) is not None
        await until(lambda: gate.renewed(grant) is None)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        gate.shut_down()
