from __future__ import annotations

from pathlib import Path

import pytest

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
    ],
)
def test_mistakes_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        load_settings(None, environment)


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
