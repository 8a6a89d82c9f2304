from __future__ import annotations

from rich.console import Console

from clients.watch import Board, format_age, format_amount, format_price, sparkline
from feed.times import Time
from tests.builders import bar, quote, trade


def drawn(board: Board, width: int = 100, height: int = 24) -> str:
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as capture:
        console.print(board.render(width, height))
    return capture.get()


def test_the_board_shows_what_it_was_told() -> None:
    now = [0.0]
    board = Board("ws://x/stream", lambda: now[0])
    board.take(trade("ES", price=100, size=5))
    board.take(quote("ES"))
    now[0] = 1.0
    board.take(trade("ES", price=102.5, size=5, time=Time(5)))
    board.take(bar("NQ"))
    now[0] = 2.0
    text = drawn(board)
    assert "2 symbols, 4 ticks" in text
    (es,) = [line for line in text.splitlines() if line.startswith("ES")]
    assert es.split() == (["ES", "102.50", "+2.50%", "99.50", "100.50", "10", "0.6", "1.0s", "▁█"])


def test_it_fits_a_small_terminal() -> None:
    board = Board("ws://127.0.0.1:8000/stream", lambda: 0.0)
    for number in range(50):
        for price in range(30):
            board.take(trade(f"SYMBOL-{number:02}", price=12_345.678 + price, size=1e6))
        board.take(quote(f"SYMBOL-{number:02}"))
    lines = drawn(board, width=80).splitlines()
    assert len(lines) == 23
    assert all(len(line) <= 80 for line in lines)
    assert "29 more below" in lines[0]
    assert "12,374.678" in lines[2]
    assert "…" not in "".join(lines[1:])
    assert "█" in lines[2]
    assert "█" not in drawn(board, width=65)
    narrow = drawn(board, width=40).splitlines()
    assert "last" in narrow[1]
    assert "volume" not in narrow[1]
    assert "…" not in "".join(narrow[1:])
    board.take(trade("HUGE", price=1e300, size=1e200))
    assert "1e+300" in drawn(board, width=80)


def test_it_says_when_the_connection_is_gone() -> None:
    board = Board("ws://x/stream", lambda: 0.0)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(board.render(80, 24, connected=False))
    assert capture.get().startswith("DISCONNECTED")


def test_formats() -> None:
    assert sparkline([]) == ""
    assert sparkline([1, 1]) == "▄▄"
    assert sparkline([0, 7]) == "▁█"
    assert [format_price(price) for price in (1640.25, 5, 0.00012345, 1.23456789, 0, -37.63)] == [
        "1,640.25", "5.00", "0.00012345", "1.23456789", "0.00", "-37.63",
    ]  # fmt: skip
    assert [format_amount(amount) for amount in (0, 950, 12_300, 4_560_000, 2e9, 0.5)] == [
        "0", "950", "12.3k", "4.56M", "2G", "0.5",
    ]  # fmt: skip
    assert [format_age(age) for age in (0.25, 9.9, 12, 300)] == ["0.2s", "9.9s", "12s", "5m"]
