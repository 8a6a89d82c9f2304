from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from feed.access.authenticator import Authenticator, credentials_in
from feed.access.key_file import KeyFile, add_key
from feed.access.keys import Key, hash_secret, key_id_of, make_key_id, make_secret, parse_keys
from tickcast.commands.group import tickcast
from tickcast.settings import Settings
from tickcast.wire.actions import BearerToken, KeyAndSecret
from tickcast.wire.errors import AuthFailed, InvalidSettings, TickcastError

ID = make_key_id()
SECRET = make_secret(ID)
HASH = hash_secret(SECRET)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    add_key(path, ID, Key(name="desk", hash=HASH, symbols=("BTC-*",)))
    return path


def run(*words: str) -> str:
    result = CliRunner().invoke(tickcast, ["keys", *words], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


async def test_a_key_is_accepted_with_its_secret_only(path: Path) -> None:
    gate = Authenticator(Settings(auth=str(path)))
    for good in (KeyAndSecret(ID, SECRET), BearerToken(SECRET), BearerToken(SECRET)):
        grant = await gate.authenticate(good)
        assert (grant.subject, grant.entitlements.symbols) == (ID, ("BTC-*",))
    other = make_key_id()
    for bad in (
        KeyAndSecret(ID, SECRET + "x"), KeyAndSecret(other, SECRET), KeyAndSecret(ID, ""),
        BearerToken("x"), BearerToken(make_secret(ID)), BearerToken(make_secret(other)),
    ):  # fmt: skip
        with pytest.raises(AuthFailed):
            await gate.authenticate(bad)
    gate.shut_down()


async def test_expired_and_revoked_keys_are_refused(path: Path) -> None:
    now = datetime.now(UTC)
    gone = {
        "0" * 12: Key(name="old", hash=HASH, expires=now - timedelta(seconds=1)),
        "1" * 12: Key(name="bad", hash=HASH, revoked=now),
    }
    for key_id, key in gone.items():
        add_key(path, key_id, key)
    gate = Authenticator(Settings(auth=str(path)))
    for key_id in gone:
        with pytest.raises(AuthFailed):
            await gate.authenticate(KeyAndSecret(key_id, SECRET))
    gate.shut_down()


def test_the_command_line_adds_lists_and_revokes(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# ours\n")
    said = run("add", "desk", "--symbols", "BTC-*,ES", "--expires", "90d", "--file", str(path))
    secret = next(line.split()[1] for line in said.splitlines() if line.startswith("secret"))
    key_id = key_id_of(secret)
    assert key_id is not None
    assert secret not in path.read_text()
    assert "# ours" in path.read_text()
    key = KeyFile(path).load()[key_id]
    assert key.symbols == ("BTC-*", "ES")
    assert key.expires is not None
    assert key.expires.timestamp() - time.time() == pytest.approx(90 * 86_400, abs=60)
    assert "good" in run("list", "--file", str(path))
    run("revoke", key_id, "--file", str(path))
    assert "revoked" in run("list", "--file", str(path))
    for word in (key_id, "unknown"):
        with pytest.raises(TickcastError):
            run("revoke", word, "--file", str(path))
    assert "# ours" in path.read_text()


def test_a_new_file_is_readable_by_its_owner_only(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "keys = 1", "[keys.a]\nname='x'", "[keys.a]\nname='x'\nhash='plain'", "[other]\na=1", "[",
        f"[keys.a]\nname='x'\nhash='{HASH}'\nsymbols=['B*C']",
        f"[keys.a]\nname='x'\nhash='{HASH}'\nmax_connections=0",
        f"[keys.a]\nname='x'\nhash='{HASH}'\nexpires='soon'",
    ],
)  # fmt: skip
def test_an_invalid_key_file_is_an_error(text: str) -> None:
    with pytest.raises(InvalidSettings, match="keys"):
        parse_keys(text)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], BearerToken("abc")),
        ([(b"authorization", b"bearer  abc ")], BearerToken("abc")),
        ([(b"apca-api-key-id", b"k"), (b"apca-api-secret-key", b"s")], KeyAndSecret("k", "s")),
    ],
)
def test_headers_carry_credentials(headers: list[tuple[bytes, bytes]], expected: object) -> None:
    assert credentials_in(headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Basic abc")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
        [(b"apca-api-key-id", b"k")],
        [(b"apca-api-key-id", b"k"), (b"authorization", b"Bearer b")],
        [(b"authorization", b"Bearer " + b"x" * 9000)],
    ],
)
def test_incomplete_and_conflicting_credentials_are_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    with pytest.raises(AuthFailed):
        credentials_in(headers)


def test_secrets_are_not_in_the_representation() -> None:
    assert SECRET not in repr(KeyAndSecret("k", SECRET)) + repr(BearerToken(SECRET))
