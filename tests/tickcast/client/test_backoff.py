from __future__ import annotations

import pytest

from tickcast.client.backoff import MAX_S, RETRY_AFTER_MAX_S, STABLE_S, ReconnectDelays


@pytest.mark.parametrize(
    ("code", "delay_s"),
    [(4001, None), (4002, None), (4004, None), (4101, 0.2), (4102, 0.2), (4200, 0.0), (1012, 1.5),
     (1006, 0.2), (0, 0.2)],
)  # fmt: skip
def test_the_close_code_decides_when_to_reconnect(code: int, delay_s: float | None) -> None:
    assert ReconnectDelays(lambda: 1.0).after_close(code, 1, 1.5) == delay_s


def test_delays_grow_up_to_a_bound_and_start_over_after_a_success() -> None:
    backoff = ReconnectDelays(lambda: 1.0)
    delays = [backoff.after_failure() for _ in range(8)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, MAX_S, MAX_S]
    assert backoff.after_close(0, STABLE_S) == 0.2


def test_delays_grow_if_the_server_always_closes() -> None:
    for code in (4102, 4200, 1012):
        backoff = ReconnectDelays(lambda: 1.0)
        delays = [backoff.after_close(code, STABLE_S / 2) for _ in range(4)]
        assert delays == [0.2 if code == 4102 else 0.0, 0.4, 0.8, 1.6]


@pytest.mark.parametrize("code", [1002, 1007, 1009])
def test_no_reconnect_after_client_errors(code: int) -> None:
    assert ReconnectDelays(lambda: 1.0).after_close(code, 5) == 0.2
    assert ReconnectDelays(lambda: 1.0).after_close(code, 0) is None


def test_delays_have_jitter() -> None:
    assert ReconnectDelays(lambda: 0.25).after_failure() == 0.05


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_respected(status: int) -> None:
    assert ReconnectDelays(lambda: 1.0).after_failure(status, 7.0) == 7.0
    assert ReconnectDelays(lambda: 1.0).after_failure(status, 1e9) == RETRY_AFTER_MAX_S


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_a_refusal_is_final(status: int) -> None:
    assert ReconnectDelays().after_failure(status) is None
