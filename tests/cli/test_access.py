"""API keys on the command line: create, use, list and revoke them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tickcast.commands import main


async def test_key_from_creation_to_revocation(cli: Cli, tmp_path: Path) -> None:
    keys, token = str(tmp_path / "keys.toml"), tmp_path / "token"
    made = await cli.run("keys", "add", "desk", "--symbols", "ES", "--file", keys)
    assert made.code == 0
    key_id, secret = (line.split()[1] for line in made.out.splitlines())
    token.write_text(secret + "\n")
    cli.environment["TICKCAST_LOG_FORMAT"] = "json"
    async with cli.serving("serve", "--auth", keys) as (address, _):
        await cli.run("publish", stdin='{"T":"t","S":"ES","p":1,"s":1}\n')
        watch = ["watch", "ES", "--url", address.replace("http", "ws") + "/stream", "--limit", "1"]
        done = await cli.run(*watch, "--token-file", str(token))
        assert (done.code, done.err) == (0, "")
        assert '"S":"ES"' in done.out
        done = await cli.run(*watch)
        hint = "401 not authenticated; log in with --token-file FILE\n"
        refused = f"tickcast: the server refused: {hint}"
        assert (done.code, done.err) == (1, refused)
        url = watch[3]
        folder = tmp_path / "new" / "tapes"
        done = await cli.run("record", url, "--trades", "ES", "--out", str(folder))
        assert (done.code, done.err) == (1, refused)
        assert not folder.parent.exists()
        load = ["load", url, "--connections", "1", "--duration", "0.1s", "--warmup", "0s"]
        done = await cli.run(*load)
        assert done.code == 1
        assert done.err.endswith("/symbols: HTTP 401; log in with --token-file FILE\n")
        done = await cli.run(*load, "--symbols", "ES,")
        assert done.code == 1
        assert done.err.endswith(f"tickcast: {url}: {hint}")  # After progress, on a busy machine.
        for option in (("--token-file", str(token)), ("--key", key_id, "--secret", secret)):
            done = await cli.run(*load, *option)
            assert done.code == 0, done
        assert (await cli.run("keys", "revoke", key_id, "--file", keys)).code == 0
        assert "revoked" in (await cli.run("keys", "list", "--file", keys)).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--auth", "none.toml"], "none.toml: No such file or directory"),
        (["serve", "--jwt-key", "none.pem"], "jwt_key: none.pem: No such file or directory"),
        (["serve", "--jwks-url", "http://example.org/k"], "is not an https:// URL"),
        (["keys", "list", "--file", "none.toml"], "none.toml: No such file or directory"),
        (["keys", "add", "x", "--symbols", "A*B", "--file", "k.toml"], "symbols: 'A*B'"),
        (["keys", "add", "x", "--expires", "soon", "--file", "k.toml"], "'soon' is not a duration"),
        (["watch", "ES", "--token-file", "none"], "none: No such file or directory"),
    ],
)
def test_misuse_is_reported_in_one_line(
    words: list[str],
    message: str,
    runtime_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = ["--port", "0"] if words[0] == "serve" else []
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(runtime_dir))
    monkeypatch.chdir(tmp_path)
    # The configuration would outlast this test.
    monkeypatch.setattr("tickcast.logs.set_up", lambda *options: None)
    monkeypatch.setattr("sys.argv", ["tickcast", *words, *port])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


async def test_json_log_has_an_event_for_each_connection(cli: Cli, tmp_path: Path) -> None:
    cli.environment["TICKCAST_LOG_FORMAT"] = "json"
    async with cli.serving("serve") as (address, process):
        await cli.run("publish", stdin='{"T":"t","S":"ES","p":1,"s":1}\n')
        url = address.replace("http", "ws") + "/stream"
        assert (await cli.run("watch", "ES", "--url", url, "--limit", "1")).code == 0
        assert process.stderr is not None
        while True:
            event = json.loads(await process.stderr.readline())
            if event["message"] == "closed":
                break
        assert event["logger"] == "tickcast.connection"
        assert (event["address"], event["feed"], event["ticks"]) == ("127.0.0.1", "live", 1)
        assert event["bytes"] > 50
