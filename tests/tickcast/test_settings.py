from __future__ import annotations

from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidSettings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nhistory_ticks = 5\nfeeds = ["a", "b"]\n')
    environment = {"TICKCAST_PORT": "2", "TICKCAST_HISTORY_TICKS": "6", "HOME": "/"}
    settings = load_settings(file, environment, port=3, redis_url=None)
    assert settings == Settings(host=("0.0.0.0",), port=3, history_ticks=6, feeds=("a", "b"))


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    assert load_settings(None, {"TICKCAST_FEEDS": "live, sim"}).feeds == ("live", "sim")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TICKCAST_PORT": "x"}, "port: .* in TICKCAST_PORT"),
        ({"TICKCAST_PORT": "70000"}, "port: "),
        ({"TICKCAST_PORT": "8000/tcp"}, "port: "),
        ({"TICKCAST_ORIGINS": "https://*.org"}, "origins: 'https://\\*.org' is not an origin"),
        ({"TICKCAST_OUTBOX_MAX_BYTES": "10"}, "outbox_max_bytes: "),
        ({"TICKCAST_LOG_LEVEL": "loud"}, "log_level: "),
        ({"TICKCAST_FEEDS": "Live"}, "feeds: 'Live'"),
        ({"TICKCAST_METRICS_BIND": ":9100"}, "metrics_bind: ':9100' is not HOST:PORT"),
        ({"TICKCAST_METRICS_BIND": "::1:9100"}, "metrics_bind: '::1:9100' is not HOST:PORT"),
        ({"TICKCAST_METRICS_BIND": "localhost:65536"}, "metrics_bind: "),
    ],
)
def test_errors_name_the_setting(environment: dict[str, str], words: str) -> None:
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
def test_an_error_does_not_repeat_an_invalid_token(token: str) -> None:
    with pytest.raises(InvalidSettings, match="metrics_token: ") as caught:
        load_settings(None, {"TICKCAST_METRICS_TOKEN": token})
    assert "fish" not in str(caught.value)


NAMES = Settings.__struct_fields__


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_value_is_refused_wherever_it_comes_from(
    tmp_path: Path, name: str, value: str
) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text(f'{name} = "{value}"')
    variable = f"TICKCAST_{name.upper()}"
    with pytest.raises(InvalidSettings, match=f"{name}: empty in {file}; "):
        load_settings(file, {})
    with pytest.raises(InvalidSettings, match=f"{name}: empty in {variable}; "):
        load_settings(None, {variable: value})
    with pytest.raises(InvalidSettings, match=f"{name}: empty; "):
        load_settings(None, {}, **{name: value})


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\udcff", "\u202e"])
@pytest.mark.parametrize("name", NAMES)
def test_values_must_be_printable(name: str, character: str) -> None:
    for value in (f"a{character}b", [f"a{character}b"]):
        with pytest.raises(
            InvalidSettings, match=f"{name}: contains a control or invisible character$"
        ):
            load_settings(None, {}, **{name: value})


def test_an_empty_list_that_would_allow_all_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tickcast.toml"
    for name in ("host", "feeds"):
        file.write_text(f"{name} = []")
        with pytest.raises(InvalidSettings, match=f"{name}: empty in "):
            load_settings(file, {})
        with pytest.raises(InvalidSettings, match=f"{name}: empty in "):
            load_settings(None, {f"TICKCAST_{name.upper()}": " , "})
        file.write_text(f'{name} = ["127.0.0.1", ""]')
        with pytest.raises(InvalidSettings, match=f"{name}: empty in "):
            load_settings(file, {})
    file.write_text("origins = []\ntrusted_proxies = []\nunlimited_addresses = []")
    assert load_settings(file, {}).unlimited_addresses == ()


SERVICE_LINKS = {
    f"TICKCAST_{name}{variable}": value
    for name in ("", "REDIS_", "PORT_", "METRICS_8_")
    for variable, value in {
        "SERVICE_HOST": "10.96.0.12",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.96.0.12:8000",
        "PORT_8000_TCP": "tcp://10.96.0.12:8000",
        "PORT_8000_TCP_ADDR": "10.96.0.12",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_53_UDP": "udp://[fd00::12]:53",
    }.items()
}


def test_foreign_variables_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"TICKCAST_VERSION": "1.2", "TICKCAST_IMAGE": "", "TICKCAST_IMAGE_TAG": "latest"}
    assert load_settings(None, SERVICE_LINKS | labels) == Settings()
    assert caplog.text == ""
    assert load_settings(None, SERVICE_LINKS | {"TICKCAST_PORT": "9000"}).port == 9000


def test_an_unknown_variable_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert load_settings(None, {"TICKCAST_PROT": "9000", "TICKCAST_auht": ""}) == Settings()
    assert [record.getMessage() for record in caplog.records] == [
        f"ignored the variable '{variable}', which is not a setting; the nearest is {nearest}"
        for variable, nearest in (
            ("TICKCAST_PROT", "TICKCAST_PORT"),
            ("TICKCAST_auht", "TICKCAST_AUTH"),
        )
    ]


def test_no_setting_has_the_name_of_a_foreign_variable(caplog: pytest.LogCaptureFixture) -> None:
    for name in NAMES:
        with pytest.raises(InvalidSettings, match=f"{name}: empty"):
            load_settings(None, {f"TICKCAST_{name.upper()}": ""})


def test_an_unknown_key_of_a_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text("prot = 9000")
    with pytest.raises(InvalidSettings) as caught:
        load_settings(file, {})
    assert str(caught.value) == f"unknown setting 'prot' in {file}; the nearest is port"


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
