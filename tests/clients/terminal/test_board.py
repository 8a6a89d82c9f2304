from __future__ import annotations

import pytest

from clients.terminal.board import Board, ConnectionStatus
from clients.terminal.market import ROWS_MAX
from clients.terminal.view import Page, ViewRequest
from tests.builders import T0, bar, quote, trade
from tickcast.client.accounts import Report, SequenceAccounts
from tickcast.commands.terminal import Line, plain, to_ansi
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

LIVE = ConnectionStatus("ws://x/stream", "json", True)


def report() -> Report:
    accounts = SequenceAccounts()
    list(accounts.add_tick(trade("ES", seq=1)))
    return accounts.report(0)


def lines_of(board: Board, now: float, width: int = 80, height: int = 24) -> list[Line]:
    return board.render(width, height, now, LIVE, report)


def drawn(board: Board, now: float = 0.0, width: int = 80, height: int = 24) -> list[str]:
    return [plain(line).rstrip() for line in lines_of(board, now, width, height)]


def board_of(*ticks: Tick, now: float = 0.0) -> Board:
    board = Board()
    board.update_rates(now)
    board.add_ticks(ticks, now)
    return board


def busy_board(count: int = 50) -> Board:
    """A board of symbols with long names and long numbers."""
    board = board_of(trade("SYMBOL-00", price=1))
    board.update_rates(1.0)
    for number in range(count):
        symbol = f"SYMBOL-{number:02}"
        board.add_ticks([trade(symbol, price=12_345.678 + n, size=1e6) for n in range(30)], 0.0)
        board.add_ticks([quote(symbol)], 0.0)
    return board


def style_of(line: Line, text: str) -> str:
    return next(style for part, style in line if text in part)


def test_table_shows_prices_rates_and_volumes() -> None:
    board = board_of(trade("ES", price=100, size=5), quote("ES"))
    board.update_rates(1.0)
    board.add_ticks([trade("ES", price=102.5, size=5, time=Time(5)), bar("NQ")], 1.0)
    board.update_rates(2.0)
    top, summary, head, es, nq, *_ = drawn(board, now=2.0, width=140)
    assert top.startswith("tickcast ws://x/stream ")
    assert top.endswith("json  ● live")
    assert summary == "2 symbols · 2 ticks/s · by symbol"
    assert head.split() == [
        "symbol▴", "last", "change", "bid", "ask", "spread", "volume", "ticks/s", "age",
    ]  # fmt: skip
    assert es.split() == [
        "ES", "102.50▲", "+2.50%", "99.50", "100.50", "1.00", "10", "1.5", "1.0s", "▁██",
    ]  # fmt: skip
    assert nq.split()[:7] == ["NQ", "2.00", "+0.00%", "–", "–", "–", "10"]


def test_quotes_without_trades_are_drawn() -> None:
    board = board_of(quote("AA"), quote("BB"))
    assert all(to_ansi(line, 80) for line in lines_of(board, 0.0)[3:5])
    assert drawn(board)[4].split()[:4] == ["BB", "–", "–", "99.50"]


@pytest.mark.parametrize("page", Page)
@pytest.mark.parametrize("size", [(1, 1), (20, 5), (40, 10), (80, 24), (200, 50), (300, 100)])
def test_every_page_fits_every_terminal(page: Page, size: tuple[int, int]) -> None:
    width, height = size
    board = busy_board()
    lines_of(board, 0.0)
    candles = board.begin_chart()
    assert candles is not None
    candles.add_trades(
        trade("SYMBOL-00", price=1e6 + n, time=Time(T0 + n * 10**9)) for n in range(900)
    )
    board.view.page = page
    lines = drawn(board, width=width, height=height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)


def test_columns_are_dropped_before_numbers_are_cut() -> None:
    board = busy_board()
    small = drawn(board)
    assert "12,374.678▲" in small[3]
    assert "█" in small[3]
    assert "1–20 of 50 symbols" in small[1]
    narrow = drawn(board, width=40)
    assert "last" in narrow[2]
    assert "volume" not in narrow[2]
    assert "12,374.678▲" in narrow[3]


def test_columns_never_get_narrower() -> None:
    board = board_of(trade("ES", price=12_345.678))
    before = drawn(board)[2]
    board.add_ticks([trade("ES", price=1)], 1.0)
    assert drawn(board, 1.0)[2] == before
    # A symbol that has had three decimals keeps three.
    assert "1.000▼" in drawn(board, 1.0)[3]


def test_a_price_flashes_when_it_moves() -> None:
    board = board_of(trade("AA", price=1), trade("ES", price=100))
    board.add_ticks([trade("ES", price=101)], 1.0)
    assert style_of(lines_of(board, 1.2)[4], "101.00") == "up flash"
    assert style_of(lines_of(board, 2.0)[4], "101.00") == ""
    board.add_ticks([trade("ES", price=99)], 3.0)
    assert style_of(lines_of(board, 3.0)[4], "99.00") == "down flash"


def test_selected_symbol_is_highlighted_and_stays_selected() -> None:
    board = board_of(*(trade(f"S{n:02}") for n in range(40)))
    lines = lines_of(board, 0.0)
    assert [line[0][1] for line in lines[3:5]] == ["selected", "bold"]
    assert len(plain(lines[3])) == 80
    for _ in range(25):
        board.press("j", 0.0)
    lines = lines_of(board, 0.0)
    assert plain(lines[-2]).startswith("S25 ")
    assert lines[-2][0][1] == "selected"
    board.add_ticks([trade("AAA")], 1.0)
    lines_of(board, 1.0)
    assert board.view.selected == "S25"
    board.press("escape", 1.0)
    lines_of(board, 1.0)
    for key, chosen in (("home", "AAA"), ("up", "AAA"), ("page down", "S19"), ("G", "S39")):
        board.press(key, 1.0)
        lines_of(board, 1.0)
        assert board.view.selected == chosen


def test_sorted_rows_keep_their_places_for_a_while() -> None:
    board = board_of(trade("AA"), *(trade("BB") for _ in range(5)))
    board.update_rates(1.0)
    lines_of(board, 1.0)
    board.press("s", 1.0)
    lines = drawn(board, 1.0)
    assert lines[1].endswith("by ticks/s")
    assert "▾ticks/s" in lines[2]
    assert [line[:2] for line in lines[3:5]] == ["BB", "AA"]
    board.add_ticks([trade("AA") for _ in range(50)], 1.0)
    board.update_rates(2.0)
    assert drawn(board, 2.0)[3].startswith("BB")
    assert drawn(board, 3.0)[3].startswith("AA")


def test_default_selection_stays_on_the_first_row() -> None:
    board = board_of(*(trade(f"S{n:02}", price=1) for n in range(40)))
    lines_of(board, 0.0)
    for _ in range(2):
        board.press("s", 0.0)
    for n in (7, 30):
        board.add_ticks([trade(f"S{n:02}", price=n)], n)
        assert lines_of(board, n)[3] == [(plain(lines_of(board, n)[3]), "selected")]
        assert drawn(board, n)[3].startswith(f"S{n:02}")
    board.press("j", 30.0)
    board.add_ticks([trade("S01", price=99), trade("S02", price=98)], 33.0)
    lines = lines_of(board, 33.0)
    assert plain(lines[6]).startswith("S07 ")
    assert lines[6][0][1] == "selected"


def test_search_filters_symbols() -> None:
    board = board_of(trade("BTC-USD"), trade("ETH-USD"), trade("ES"))
    lines_of(board, 0.0)
    for key in "/btq":  # The `q` is typed into a text field here.
        assert board.press(key, 0.0) in (None, ViewRequest.NO_CHART)
    assert drawn(board)[-1].startswith("/btq▏")
    board.press("backspace", 0.0)
    assert [line[:3] for line in drawn(board)[3:5]] == ["BTC", ""]
    board.press("enter", 0.0)
    assert drawn(board)[1].startswith("1 symbol ·")
    assert "with “bt”" in drawn(board)[1]
    board.press("escape", 0.0)
    assert "3 symbols" in drawn(board)[1]


def test_pause_freezes_only_the_display() -> None:
    board = board_of(trade("AA", price=1), trade("BB", price=2))
    lines_of(board, 0.0)
    board.press("j", 0.0)
    board.press("k", 0.0)
    board.press("p", 1.0)
    board.add_ticks([trade("AA", price=7), trade("CC")], 2.0)
    lines = drawn(board, 3.0)
    assert lines[0].endswith("‖ PAUSED for 2.0s, 2 ticks since")
    assert lines[3].split()[1] == "1.00"
    assert "2 symbols" in lines[1]
    board.press("j", 3.0)
    assert lines_of(board, 3.0)[4][0][1] == "selected"
    assert board.market.ticks == 4
    board.press("p", 4.0)
    assert drawn(board, 4.0)[3].split()[1] == "7.00▲"


def test_candles_of_the_selected_symbol() -> None:
    board = board_of(trade("AA"), trade("ES"))
    lines_of(board, 0.0)
    board.press("down", 0.0)
    assert board.press("enter", 0.0) is ViewRequest.CHART
    candles = board.begin_chart()
    assert candles is not None
    assert (candles.symbol, candles.timeframe) == ("ES", "5s")
    assert "no trades yet" in drawn(board)[3]
    candles.add_trades([trade("ES", price=100, size=3), trade("ES", price=104, size=4)])
    lines = drawn(board)
    assert lines[1].startswith("ES  1,640.25")
    assert "O 100.00 H 104.00 L 100.00 C 104.00 V 7" in lines[2]
    assert "┃" in "".join(lines)
    assert "◂104.00" in "".join(lines)
    assert board.press("1", 0.0) is ViewRequest.CHART
    assert board.press("1", 0.0) is None
    assert board.press("up", 0.0) is ViewRequest.CHART
    assert board.view.selected == "AA"
    assert board.press("escape", 0.0) is ViewRequest.NO_CHART


def test_audit_and_help_pages() -> None:
    board = board_of(trade("ES"))
    assert board.press("a", 0.0) is ViewRequest.NO_CHART
    assert drawn(board)[2] == "balanced, 1 stream, 0 reconnects"
    assert board.press("?", 0.0) is None
    assert "search: only symbols" in "".join(drawn(board))
    board.press("x", 0.0)
    assert board.view.page is Page.AUDIT
    assert board.press("e", 0.0) is ViewRequest.ENCODING
    assert board.press("q", 0.0) is ViewRequest.QUIT


def test_header_shows_a_lost_connection() -> None:
    board = board_of(trade("ES"))
    status = ConnectionStatus("ws://x/stream", "msgpack", False, waiting=5000)
    top = plain(board.render(80, 24, 0.0, status, report)[0])
    assert top.endswith("5,000 waiting  msgpack  ○ DISCONNECTED, reconnecting …")


def test_summary_counts_hidden_symbols() -> None:
    board = board_of(*(trade(f"S{n}") for n in range(ROWS_MAX + 7)))
    assert drawn(board)[1].startswith("1–20 of 1,000 symbols, the busiest; 7 more are hidden · ")


def test_messages_disappear_after_a_few_seconds() -> None:
    board = board_of(trade("ES"))
    board.show_message("no history", 1.0)
    assert drawn(board, 2.0)[-1] == "no history"
    assert drawn(board, 7.0)[-1].startswith("? help  q quit  Enter candles")


def test_changed_is_set_only_by_news() -> None:
    board = board_of(trade("ES"))
    lines_of(board, 0.0)
    assert not board.changed
    board.update_rates(0.5)
    assert not board.changed
    board.update_rates(1.0)
    assert board.changed
