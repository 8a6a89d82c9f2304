"""One client requests the most expensive things, while another client's ticks stay on time."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed

from feed.access.key_file import add_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tests.builders import trade
from tests.faults.conftest import Scale
from tests.faults.report import tell_numbers
from tests.faults.scene import Scene
from tests.faults.serving import can_look_inside
from tests.faults.source import Source, made_up
from tickcast.tasks import cancel_and_wait

pytestmark = pytest.mark.faults

RATE: Final = 50.0
LATE_MS_MAX: Final = 250.0
LATE_MS_GENEROUS: Final = 1000.0
"""In the short version other tests share the machine. Requests used to delay ticks by seconds."""
GROWTH_MAX: Final = 64 * 1024 * 1024
_RATE_LIMITED: Final = 429
_MESSAGE_MAX: Final = 60_000


def new_key(keys: Path, patterns: int) -> str:
    """Add a key to a file; return its secret."""
    key_id = make_key_id()
    secret = make_secret(key_id)
    symbols = ("ES", *(f"S{number:04}*" for number in range(patterns)))
    add_key(keys, key_id, Key(name="test", hash=hash_secret(secret), symbols=symbols))
    return secret


@asynccontextmanager
async def connected(url: str, secret: str) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {secret}"}
    async with open_websocket(
        url, additional_headers=headers, compression=None, max_size=None, max_queue=None
    ) as socket:
        await socket.recv()
        yield socket


class Bystander:
    """A client of one stream that records how late the server has written each tick."""

    def __init__(self, url: str, secret: str, symbols: str = "ES") -> None:
        self._url = url
        self._secret = secret
        self._symbols = symbols
        self.live = False
        self.late_ms: list[float] = []

    async def run(self) -> None:
        async with connected(self._url, self._secret) as socket:
            await socket.send('{"action":"configure","stamps":true}')
            await socket.send(json.dumps({"action": "subscribe", "trades": [self._symbols]}))
            async for frame in socket:
                for message in json.loads(frame):
                    self.live = self.live or message["T"] == "subscription"
                    if message["T"] == "t":
                        self.late_ms.append((message["tw"] - message["tr"]) / 1000)

    def take(self) -> list[float]:
        """Return the delays since the last call, in ascending order."""
        late, self.late_ms = sorted(self.late_ms), []
        return late


def requests_of(symbols: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the most expensive actions, to be sent one after another on one connection."""
    positions: dict[str, int] = {}
    for symbol in symbols:
        positions[symbol] = 1
        if len(json.dumps(positions)) > _MESSAGE_MAX:
            break
    everything: dict[str, Any] = {"action": "subscribe", "trades": ["*"]}
    return {
        "names": [{"action": "subscribe", "trades": symbols[:1000]}],
        "prefixes": [
            {"action": "subscribe", "trades": sorted({each[:5] + "*" for each in symbols})}
        ],
        "snapshot": [{**everything, "snapshot": True, "positions": True}],
        "configure": [
            everything,
            *({"action": "configure", "stamps": bool(turn % 2)} for turn in range(6)),
        ],
        "intervals": [
            everything,
            *({"action": "configure", "conflate_ms": 10 * turn} for turn in range(1, 7)),
        ],
        "resume": [{**everything, "resume": {"epoch": "", "trades": positions}}],
        "unsubscribe": [everything, {"action": "unsubscribe", "trades": ["*"]}] * 3,
    }


async def ask_again_and_again(url: str, secret: str, actions: list[dict[str, Any]]) -> None:
    """Send all of them on one connection after another, each once the previous one is answered."""
    while True:
        with_id = [json.dumps({**action, "id": place}) for place, action in enumerate(actions)]
        async with connected(url, secret) as socket:
            for place, message in enumerate(with_id):
                await socket.send(message)
                await answer_to(socket, place)


async def answer_to(socket: ClientConnection, id_: int) -> None:
    mark = f'"id":{id_}}}]'.encode()
    try:
        async for frame in socket:
            data = frame if isinstance(frame, bytes) else frame.encode()
            if data.endswith(mark):
                if b'"T":"error"' in data:
                    assert json.loads(data)[0]["code"] == _RATE_LIMITED, data
                    await asyncio.sleep(0.5)
                return
    except ConnectionClosed:
        return


async def change_again_and_again(keys: Path, count: int) -> None:
    """Let a file of keys grow by a large number, and change one of them now and then."""
    text = keys.read_text()
    hashed = hash_secret("none")
    more = "".join(
        f'[keys.k{number}]\nname = "n{number}"\nhash = "{hashed}"\n' for number in range(count)
    )
    for turn in itertools.count():
        new = keys.with_suffix(".new")
        new.write_text(f'{text}\n{more}[keys.last]\nname = "n{turn}"\nhash = "{hashed}"\n')
        new.replace(keys)
        await asyncio.sleep(2)


@pytest.mark.parametrize("attackers", [1, 20])
async def test_expensive_requests(directory: Path, scale: Scale, attackers: int) -> None:
    if attackers > 1 and not scale.long:
        pytest.skip("`make faults` alone has several")
    streams, patterns, seconds = scale.pick((3000, 300, 0.4), (10_000, 1000, 5.0))
    symbols = [f"S{number:05}" for number in range(streams)]
    keys = directory / "keys.toml"
    secret = new_key(keys, patterns)
    async with Scene(directory, auth=str(keys), history_ticks=100) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        publisher = await scene.publisher(store.url)
        await publisher.publish([trade(symbol) for symbol in symbols])
        await publisher.flush()
        bystander = scene.start(Bystander(server.stream(), secret))
        await scene.until(lambda: bystander.live, 10, "a bystander")
        source = scene.start(Source(publisher, made_up(["ES"]), RATE))
        await scene.flowing(source, int(RATE) // 2)
        if attackers > 1:
            # Otherwise their subscriptions would make the server carry all streams.
            everything = scene.start(Bystander(server.stream(), secret, "*"))
            await scene.until(lambda: everything.live, 20, "a client of all streams")
        before = server.rss_bytes() if can_look_inside() else 0
        figures: dict[str, Any] = {
            "attackers": attackers, "streams": streams, "patterns": patterns,
        }  # fmt: skip
        worst_ms = 0.0
        attacks = {
            name: [ask_again_and_again(server.stream(), secret, actions) for _ in range(attackers)]
            for name, actions in requests_of(symbols).items()
        }
        attacks["keys"] = [change_again_and_again(keys, streams)]
        for name, works in attacks.items():
            bystander.take()
            began = time.monotonic()
            tasks = [asyncio.create_task(work) for work in works]
            done, _ = await asyncio.wait(
                tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            assert not done, [task.result() for task in done]
            await cancel_and_wait(tasks)
            await scene.pass_by(0.1)
            late = bystander.take()
            assert len(late) > RATE / 2 * (time.monotonic() - began), name
            worst = late[len(late) * 99 // 100]
            worst_ms = max(worst_ms, worst)
            figures[name] = f"{late[len(late) // 2]:.0f}/{worst:.0f}/{late[-1]:.0f} ms"
        grown = server.rss_bytes() - before if can_look_inside() else 0
        source.stop()
        tell_numbers("expensive requests", {**figures, "grown_mib": grown >> 20})
        assert worst_ms < (LATE_MS_MAX if scale.long else LATE_MS_GENEROUS)
        assert grown < GROWTH_MAX
