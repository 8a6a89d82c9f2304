from __future__ import annotations

from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from feed.errors import InvalidSettings
from feed.settings import Settings, load_settings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nhistory_ticks = 5\nfeeds = ["a", "b"]\n')
    environment = {"TICKCAST_PORT": "2", "TICKCAST_HISTORY_TICKS": "6", "HOME": "/"}
    settings = load_settings(file, environment, port=3, redis_url=None)
    assert settings == Settings(host="0.0.0.0", port=3, history_ticks=6, feeds=("a", "b"))


def test_the_environment_spells_lists_with_commas() -> None:
    assert load_settings(None, {"TICKCAST_FEEDS": "live, sim"}).feeds == ("live", "sim")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TICKCAST_PROT": "1"}, "unknown setting 'prot'"),
        ({"TICKCAST_PORT": "x"}, "port: "),
        ({"TICKCAST_PORT": "70000"}, "port: "),
        ({"TICKCAST_OUTBOX_MAX_BYTES": "10"}, "outbox_max_bytes: "),
        ({"TICKCAST_LOG_LEVEL": "loud"}, "log_level: "),
        ({"TICKCAST_FEEDS": "Live"}, "feeds: 'Live'"),
        ({"TICKCAST_METRICS_BIND": ":9100"}, "metrics_bind: ':9100' is not HOST:PORT"),
        ({"TICKCAST_METRICS_BIND": "::1:9100"}, "metrics_bind: '::1:9100' is not HOST:PORT"),
        ({"TICKCAST_METRICS_BIND": "localhost:65536"}, "metrics_bind: "),
    ],
)
def test_mistakes_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        load_settings(None, environment)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, None),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("host.example:9100", ("host.example", 9100)),
        ("[::1]:65535", ("::1", 65_535)),
    ],
)
def test_the_address_of_the_metrics(text: str | None, address: tuple[str, int] | None) -> None:
    assert load_settings(None, {}, metrics_bind=text).metrics_address == address


@pytest.mark.parametrize("token", ["swordfish", "sword fish sword fish", "swordfishswordfish\n"])
def test_a_token_that_will_not_do_is_not_repeated(token: str) -> None:
    with pytest.raises(InvalidSettings, match="metrics_token: ") as caught:
        load_settings(None, {"TICKCAST_METRICS_TOKEN": token})
    assert "fish" not in str(caught.value)


def test_an_empty_token_is_none_at_all(tmp_path: Path) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text('metrics_token = ""')
    with pytest.raises(InvalidSettings, match="metrics_token: "):
        load_settings(file, {})


def test_secrets_are_not_shown() -> None:
    token = "swordfish" * 2
    settings = load_settings(
        None, {"TICKCAST_METRICS_TOKEN": token}, redis_url="redis://:swordfish@127.0.0.1"
    )
    assert settings.metrics_token == token
    for shown in (repr(settings), str(settings), f"{settings}", pretty_repr(settings)):
        assert "swordfish" not in shown
        assert "port=8000" in shown
    assert "metrics_token=None" in repr(Settings())


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="No such file"):
        load_settings(tmp_path / "none.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("port = ")
    with pytest.raises(InvalidSettings, match="not TOML"):
        load_settings(broken, {})


def test_every_setting_is_documented() -> None:
    text = DOCS.read_text("utf-8")
    missing = [
        name
        for name in Settings.__struct_fields__
        if f"`{name}`" not in text or f"TICKCAST_{name.upper()}" not in text
    ]
    assert missing == []
