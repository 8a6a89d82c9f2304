from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from feed.server.sockets import bind
from tests.cli.conftest import Cli
from tests.conftest import until
from tests.talk import talking
from tests.tickcast.broker.test_embedded import processes_using


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_closes_clients_with_1012_and_cleans_up(
    cli: Cli, runtime_dir: Path, number: signal.Signals
) -> None:
    async with cli.serving() as (address, process):
        url = address.replace("http", "ws") + "/stream"
        async with (
            talking(url) as plain,
            talking(url, subprotocols=["tickcast.v1.msgpack"]) as extended,
        ):
            for talk in (plain, extended):
                await talk.ask(action="subscribe", trades=["*"])
            loop = asyncio.get_running_loop()
            sent = loop.time()
            process.send_signal(number)
            notice = await extended.hear()
            assert notice["T"] == "shutdown"
            assert 0 < notice["retry_ms"] < 10_000
            for talk in (plain, extended):
                with pytest.raises(ConnectionClosed) as caught:
                    await talk.hear()
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1012
            _, err = await process.communicate()
            assert loop.time() - sent < 2
            assert process.returncode == 0
            assert b"Traceback" not in err
            assert b"ERROR" not in err
    assert not runtime_dir.exists()
    assert processes_using(runtime_dir) == []


async def test_repeated_signals_do_no_harm(cli: Cli, runtime_dir: Path) -> None:
    async with cli.serving() as (address, process):
        async with talking(address.replace("http", "ws") + "/stream"):
            for _ in range(5):
                process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.05)
            _, err = await asyncio.wait_for(process.communicate(), 5)
        assert process.returncode in (0, 130)  # depends on when the last signal came
        assert b"Traceback" not in err
        assert b"ERROR" not in err
    await until(lambda: not runtime_dir.exists())
    assert processes_using(runtime_dir) == []


async def test_unresponsive_clients_do_not_delay_the_shutdown(cli: Cli) -> None:
    async with cli.serving() as (address, process):
        _, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":", 1)[1]))
        writer.write(
            b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        async with httpx.AsyncClient() as client:
            assert (await client.get(address + "/health")).status_code == 200
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 2)
        assert process.returncode == 0
        writer.close()


async def test_store_ends_with_a_killed_server(cli: Cli, runtime_dir: Path) -> None:
    async with cli.serving() as (_, process):
        assert processes_using(runtime_dir)
        process.kill()
        await process.wait()
        await until(lambda: not processes_using(runtime_dir))
        await until(lambda: not runtime_dir.exists())


async def test_http_endpoints(cli: Cli) -> None:
    published = (
        '{"T":"t","S":"B","p":1,"s":1,"t":"2020-01-01T00:00:00.000000001Z"}\n'
        '{"T":"q","S":"A","bp":1,"bs":2,"ap":3,"as":4}\n{"T":"t","S":"A","p":1.5,"s":1}\n'
    )
    async with cli.serving() as (address, _), httpx.AsyncClient(base_url=address) as client:
        done = await cli.run("publish", stdin=published)
        assert (done.code, done.err) == (0, "published 3 ticks\n")
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/symbols")).json() == [
            {"S": "A", "channels": ["trades", "quotes"]},
            {"S": "B", "channels": ["trades"]},
        ]
        assert (await client.get("/symbols?feed=sim")).json() == []
        snapshot = (await client.get("/snapshot?symbols=A,B")).json()
        assert [(tick["T"], tick["S"], tick["seq"]) for tick in snapshot] == [
            ("t", "A", 1), ("q", "A", 1), ("t", "B", 1),
        ]  # fmt: skip
        assert snapshot[2]["t"] == "2020-01-01T00:00:00.000000001Z"
        repeated = (await client.get("/snapshot?symbols=A&symbols=B")).json()
        assert repeated == snapshot
        wildcard = (await client.get("/snapshot?symbols=*")).json()
        assert wildcard == snapshot
        too_many = ",".join(f"S{number}" for number in range(1025))
        assert (await client.get(f"/snapshot?symbols={too_many}")).status_code == 400
        for bad in ("/snapshot", "/snapshot?symbols=a%20b"):
            assert (await client.get(bad)).status_code == 400
        assert (await client.get("/symbols?feed=UP")).status_code == 404
        for path in ("/stream", "/v2/live"):
            assert (await client.get(path)).status_code == 426
        for path in ("/v2/UP", "/stream/", "/nowhere", "/static/../app.py", "/static/"):
            assert (await client.get(path)).status_code == 404
        page = await client.get("/")
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
        assert (await client.get("/static/feed.js")).headers["cache-control"] == "no-cache"


async def test_two_servers_on_one_store_deliver_the_same_ticks(cli: Cli) -> None:
    async with cli.serving() as (first, _), cli.serving() as (second, other):
        streams = [address.replace("http", "ws") + "/stream" for address in (first, second)]
        async with talking(streams[0]) as one, talking(streams[1]) as two:
            await one.ask(action="subscribe", trades=["*"], quotes=["*"])
            await two.ask(action="subscribe", trades=["*"], quotes=["*"])
            done = await cli.run("synth", "--rate", "5000", "--limit", "2000", "--symbols", "5")
            assert done.code == 0
            ticks = [await talk.ticks(2000) for talk in (one, two)]
        by_stream = [
            sorted(found, key=lambda tick: (tick["T"], tick["S"], tick["seq"])) for found in ticks
        ]
        assert by_stream[0] == by_stream[1]
        other.terminate()
        _, err = await other.communicate()
        assert b"a store is already running" in err


async def test_port_in_use_is_an_error(cli: Cli) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = str(listener.getsockname()[1])
        done = await cli.run("serve", "--port", port)
        assert (done.code, done.out) == (1, "")
        assert done.err == f"tickcast: can't listen on 127.0.0.1:{port}: Address already in use\n"


async def test_demo_uses_the_next_free_port(cli: Cli, runtime_dir: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        process = await cli.start("demo", "--port", str(port), "--rate", "500")
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith(f"port {port} is taken, using ")
        listening = (await process.stdout.readline()).decode().split()[-1]
        async with talking(listening.replace("http", "ws") + "/stream") as talk:
            await talk.ask(action="subscribe", trades=["*"], quotes=["*"])
            await talk.ticks(100)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in err
    assert not runtime_dir.exists()


async def test_metrics_on_a_separate_address(cli: Cli) -> None:
    cli.environment["TICKCAST_METRICS_TOKEN"] = "correct-horse-battery"
    process = await cli.start("serve", "--port", "0", "--metrics-bind", "127.0.0.1:0")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        first = (await process.stdout.readline()).decode()
        await process.stdout.readline()
    assert first.startswith("metrics at http://127.0.0.1:")
    url = first.split()[-1]
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 401
        right = {"Authorization": "Bearer correct-horse-battery"}
        assert (await client.get(url, headers=right)).status_code == 200
        # The client keeps its connection alive, which must not delay the shutdown.
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 0
    assert b"Traceback" not in err
    assert b"ERROR" not in err
    assert b"horse" not in err
    # Other users can see the arguments of a command.
    assert "metrics-token" not in (await cli.run("serve", "--help")).out


async def test_metrics_address_in_use_is_an_error(cli: Cli, runtime_dir: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        used = f"127.0.0.1:{listener.getsockname()[1]}"
        done = await cli.run("serve", "--port", "0", "--metrics-bind", used)
    assert (done.code, done.out) == (1, "")
    assert f"tickcast: can't listen on {used}: Address already in use\n" in done.err
    assert processes_using(runtime_dir) == []


@pytest.mark.parametrize(
    ("words", "addresses"),
    [
        (["--host", "::"], ["[::]", "0.0.0.0"]),
        (["--host", "127.0.0.1", "--host", "::1"], ["127.0.0.1", "[::1]"]),
    ],
)
async def test_ipv4_and_ipv6_at_once(cli: Cli, words: list[str], addresses: list[str]) -> None:
    process = await cli.start("serve", "--port", "0", *words)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        lines = [(await process.stdout.readline()).decode() for _ in addresses]
    port = lines[0].rsplit(":", 1)[1]
    assert lines == [f"listening on http://{address}:{port}" for address in addresses]
    async with httpx.AsyncClient() as client:
        for address in ("127.0.0.1", "[::1]"):
            url = f"http://{address}:{port.strip()}/health"
            assert (await client.get(url)).status_code == 200
    process.terminate()
    await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0


async def test_running_out_of_descriptors_is_logged_once(cli: Cli) -> None:
    process = await asyncio.create_subprocess_shell(
        f"ulimit -n 50; exec {sys.executable} -m tickcast serve --port 0",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment,
    )  # fmt: skip
    cli.processes.append(process)
    assert process.stdout is not None
    assert process.stderr is not None
    port = int((await process.stdout.readline()).decode().rsplit(":", 1)[1])
    log = b""
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        for _ in range(60):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        while b"out of file descriptors" not in log:
            log = await process.stderr.readline()
        used_s = cpu_seconds(process.pid)
        await asyncio.sleep(0.5)
        assert cpu_seconds(process.pid) - used_s < 0.25, "it accepts in a busy loop"
    async with asyncio.timeout(20), httpx.AsyncClient() as client:
        while True:
            with suppress(httpx.TransportError):
                assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
                break
    process.terminate()
    _, rest = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert b"this process may have 50;" in log
    assert b"out of file descriptors" not in rest


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_unknown_variable_is_reported_on_stderr(cli: Cli) -> None:
    cli.environment |= {"TICKCAST_PROT": "1", "TICKCAST_SERVICE_HOST": "10.0.0.1"}
    done = await cli.run("publish")
    warning, failed = done.err.splitlines()
    assert warning == (
        "tickcast: ignored the variable 'TICKCAST_PROT', which is not a setting;"
        " the nearest is TICKCAST_PORT"
    )
    assert failed.startswith("tickcast: no store is running")
    assert done.code == 1
