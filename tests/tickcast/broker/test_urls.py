"""URLs of Redis: a mistake is reported at once, in one line, without the password."""

from __future__ import annotations

import pytest

from tickcast.broker.client import database_of, make_client, safe_url
from tickcast.wire.errors import InvalidSettings

BAD = [
    *("", "localhost:6379", "http://{}@host", "redis:/{}@host", "redis:{}@host", "//{}@host"),
    *(
        "redis://",
        "redis://{}@",
        "redis://{}@:6379",
        "redis://{}@/1",
        "redis:///1",
        "redis://?db=1",
    ),
    *("redis://{}@host:port", "redis://{}@host:0", "redis://{}@host:65536", "redis://{}@host:"),
    *("redis://{}@host:-1", "redis://{}@host:6379:6379", "redis://{}@h:63 79"),
    *("redis://{}@host/x", "redis://{}@host/-1", "redis://{}@host/1/2", "redis://{}@host/0x1"),
    *("redis://{}@host/1.5", "redis://{}@host/99999999999", "redis://{}@host?db=x"),
    *("redis://{}@host?db=-1", "redis://{}@host?db=", "redis://{}@host?unknown=1"),
    *("redis://{}@host?protocol=3", "redis://{}@host?retry=1", "redis://{}@host?flag"),
    *("redis://{}@host?socket_timeout=soon", "redis://{}@host?max_connections=x"),
    *("redis://{}@host?max_connections=-1", "redis://{}@host?ssl_cert_reqs=none"),
    *("rediss://{}@host?ssl_cert_reqs=maybe", "rediss://{}@host?ssl_ca_certs=/nonexistent"),
    *("rediss://{}@host?ssl_certfile=/nonexistent", "rediss://{}@host?ssl_min_version=TLS9"),
    *("redis://{}%zz@host", "redis://{}%@host", "redis://{}@host?db=%1", "redis://{}@ho st"),
    *("redis://{}@host#0", "redis://{}#x@host", "redis://{}/x@host", "redis://{}?x=y@host"),
    *("redis://{}?x@host", "redis://{}@[::1", "redis://[{}]@host", "redis://a[{}@host"),
    *("redis://{}\uff20host", "redis://{}@host\n", "redis://{}@host/1?db=1&", "redis://:{}"),
    *("unix://", "unix:///", "unix://{}@host/path", "unix://path", "unix:path", "unix:///s?db=x"),
    *("unix:///s?unknown=1", "unix:///s#0", "redis+sentinel://{}@host", "redis-cluster://{}@host"),
]


@pytest.mark.parametrize("credentials", ["user:swordfish", ":swordfish"])
@pytest.mark.parametrize("pattern", BAD)
def test_a_malformed_url_is_refused_without_its_password(pattern: str, credentials: str) -> None:
    url = pattern.format(credentials)
    with pytest.raises(InvalidSettings, match=r"^redis_url: ") as caught:
        make_client(url)
    assert "swordfish" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "swordfish" not in safe_url(url)


@pytest.mark.parametrize(
    ("url", "database", "shown"),
    [
        ("redis://host", 0, "redis://host"),
        ("redis://host:6380/", 0, "redis://host:6380/"),
        ("redis://user:pass%40word@host:6379/2", 2, "redis://host:6379/2"),
        ("redis://:p%2Fa%3Fb%23c@[::1]:6379/15", 15, "redis://[::1]:6379/15"),
        ("redis://host?db=3&socket_timeout=2.5", 3, "redis://host"),
        ("redis://host?username=a&password=swordfish", 0, "redis://host"),
        ("rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false", 0, "rediss://host"),
        ("unix:///tmp/a%20b/store.sock?db=1", 1, "unix:///tmp/a%20b/store.sock"),
        ("unix://user:swordfish@/tmp/store.sock", 0, "unix:///tmp/store.sock"),
    ],
)
def test_good_urls(url: str, database: int, shown: str) -> None:
    assert database_of(make_client(url)) == database
    assert safe_url(url) == shown


def test_an_unknown_parameter_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidSettings) as caught:
        make_client("redis://user:swordfish@host:6379/1?pasword=x")
    assert str(caught.value) == (
        "redis_url: 'redis://host:6379/1': unknown parameter 'pasword'; the nearest is password"
    )
