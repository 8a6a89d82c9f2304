"""TLS from the command line: the options, and the errors when something is wrong."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shlex
import signal
import ssl
from pathlib import Path

import pytest

from feed.transport.tls import (
    provide_self_signed,
)
from tests.cli.conftest import Cli, Shell


async def test_serve_watch_and_load(cli: Cli, tmp_path: Path) -> None:
    cert, key = (str(file) for file in provide_self_signed(tmp_path))
    async with cli.serving("serve", "--tls-cert", cert, "--tls-key", key) as (address, _):
        assert address.startswith("https://")
        done = await cli.run("publish", stdin='{"T":"t","S":"ES","p":1,"s":1}\n')
        assert done.code == 0
        url = address.replace("https", "wss") + "/stream"
        done = await cli.run("watch", "ES", "--url", url, "--ca", cert, "--limit", "1")
        assert (done.code, done.err) == (0, "")
        assert '"S":"ES"' in done.out
        load = ["load", url, "--connections", "2", "--symbols", "ES", "--duration", "100ms"]
        for command in (["watch", "ES", "--url", url], load, [*load, "--symbols", "1"]):
            done = await cli.run(*command)
            assert done.code == 1
            assert "Traceback" not in done.err
            assert re.search(
                r"^tickcast: (wss|https)://[^ ]+: the server's certificate is not trusted:"
                r" [^\n]+ --ca [^\n]+\n$",
                done.err,
                re.MULTILINE,
            )
        done = await cli.run(*load, "--ca", cert)
        assert done.code == 0, done.err


@pytest.mark.parametrize("missing", ["--tls-cert", "--tls-key"])
def test_certificate_and_key_are_both_required(shell: Shell, missing: str) -> None:
    done = shell.run("serve", "--port", "0", missing, "x.pem")
    assert (done.code, done.out) == (2, "")
    assert done.err == "tickcast: tls_cert and tls_key: give both, or neither\n"


def test_unusable_files_are_reported(
    shell: Shell, tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = provide_self_signed(tmp_path)
    none = tmp_path / "none.pem"
    done = shell.run("serve", "--port", "0", "--tls-cert", none, "--tls-key", none)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"tickcast: tls_cert: {none}: No such file or directory\n"
    for name in ("TICKCAST_TLS_CERT", "TICKCAST_TLS_KEY"):
        monkeypatch.setenv(name, str(pair.cert))
    done = shell.run("serve", "--port", "0")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"tickcast: tls_key: {pair.cert} holds no private key in PEM form\n"
    assert not runtime_dir.exists()


async def demo_output(cli: Cli) -> list[str]:
    """Return the output of `demo --tls`, after checking that the commands in it work."""
    process = await cli.start("demo", "--tls", "--port", "0", "--rate", "500")
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().rstrip("\n") for _ in range(7)]
    (watch,) = (line for line in lines if line.startswith("  tickcast watch"))
    done = await cli.run(*shlex.split(watch)[1:], "--limit", "5")
    assert (done.code, len(done.out.splitlines())) == (0, 5), done.err
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert b"Traceback" not in err
    return lines


async def test_demo_creates_a_certificate_and_keeps_it(cli: Cli, runtime_dir: Path) -> None:
    first, second = await demo_output(cli), await demo_output(cli)
    assert first[-1] == second[-1]
    key = runtime_dir / "demo-key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    cert = ssl.PEM_cert_to_DER_cert((runtime_dir / "demo-cert.pem").read_text())
    assert first[-1].strip().replace(":", "").lower() == hashlib.sha256(cert).hexdigest()
