"""The contents of frames, from the examples in each venue's documentation."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.venues.normalizer import parse_frame
from producers.venues.registry import VENUES, venue_at
from tickcast.venues import Notice, NoticeKind, TickFrame, TickKinds, Venue
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import Time

BINANCE, COINBASE, KRAKEN = (VENUES[name] for name in ("binance", "coinbase", "kraken"))
NOW = Time.parse("2026-01-05T12:00:00Z")
AT_MS = 1_672_515_782_136


def ticks_of(venue: Venue, frame: str) -> list[Tick]:
    content = parse_frame(venue, frame.encode(), NOW)
    assert isinstance(content, TickFrame), content
    return [each.tick for each in content.ticks]


COINBASE_TICKER = """{"type":"ticker","sequence":37475248783,"product_id":"ETH-USD",
"price":"1285.22","best_bid":"1285.04","best_bid_size":"0.46688654","best_ask":"1285.27",
"best_ask_size":"1.56637040","side":"buy","time":"2022-10-19T23:28:22.061769Z",
"trade_id":370843401,"last_size":"11.4396987"}"""
KRAKEN_TRADES = """{"channel":"trade","type":"update","data":[
{"symbol":"MATIC/USD","side":"sell","price":0.5117,"qty":40.0,"ord_type":"market",
"trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"},
{"symbol":"XBT/USD","side":"buy","price":26000,"qty":0.00000001,"ord_type":"limit",
"trade_id":7,"timestamp":"2023-09-25T07:49:37.708706001Z"}]}"""
KRAKEN_TICKER = """{"channel":"ticker","type":"snapshot","data":[{"symbol":"ALGO/USD",
"bid":0.10025,"bid_qty":740.0,"ask":0.10036,"ask_qty":1361.44813783,"last":0.10035,
"volume":997038.98383185,"vwap":0.10148,"low":0.09979,"high":0.10285,"change":-0.00017,
"change_pct":-0.17%s}]}"""
BINANCE_TRADE = """{"stream":"bnbbtc@trade","data":{"e":"trade","E":%d,"s":"BNBBTC","t":12345,
"p":"0.001","q":"100","T":%d,"m":true,"M":true}}"""

BINANCE_BOOK = """{"stream":"bnbusdt@bookTicker","data":{"u":400900217,"s":"BNBUSDT",
"b":"25.35190000","B":"31.21000000","a":"25.36520000","A":"40.66000000"}}"""
COINBASE_MATCH = """{"type":"match","trade_id":10,"sequence":50,"maker_order_id":"x",
"taker_order_id":"y","time":"2014-11-07T08:19:27.028459Z","product_id":"BTC-USD","size":"5.23512",
"price":"400.23","side":"sell"}"""


def test_a_coinbase_ticker_is_a_quote_and_no_trade() -> None:
    assert ticks_of(COINBASE, COINBASE_TICKER) == [
        Quote(
            symbol="ETH-USD", bid_venue="coinbase", bid_price=1285.04, bid_size=0.46688654,
            ask_venue="coinbase", ask_price=1285.27, ask_size=1.5663704,
            time=Time.parse("2022-10-19T23:28:22.061769Z"),
        )
    ]  # fmt: skip


def test_kraken_trades_keep_their_taker_and_all_digits() -> None:
    assert ticks_of(KRAKEN, KRAKEN_TRADES) == [
        Trade(symbol="MATIC-USD", id=4665906, venue="kraken", price=0.5117, size=40, side="S",
              time=Time.parse("2023-09-25T07:49:37.708706Z")),
        Trade(symbol="BTC-USD", id=7, venue="kraken", price=26000, size=1e-8, side="B",
              time=Time.parse("2023-09-25T07:49:37.708706001Z")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stamp", "time"),
    [("", NOW), (',"timestamp":"2025-01-01T00:00:00.5Z"', Time.parse("2025-01-01T00:00:00.5Z"))],
)
def test_kraken_tickers_have_a_time_or_that_of_their_receipt(stamp: str, time: Time) -> None:
    assert ticks_of(KRAKEN, KRAKEN_TICKER % stamp) == [
        Quote(symbol="ALGO-USD", bid_venue="kraken", bid_price=0.10025, bid_size=740,
              ask_venue="kraken", ask_price=0.10036, ask_size=1361.44813783, time=time)
    ]  # fmt: skip


@pytest.mark.parametrize("unit_ns", [1000, 1_000_000])
def test_binance_trades_in_milliseconds_or_microseconds(unit_ns: int) -> None:
    sent, traded = 1_672_515_782_136_000_000, 1_672_515_782_135_000_000
    content = parse_frame(
        BINANCE, (BINANCE_TRADE % (sent // unit_ns, traded // unit_ns)).encode(), NOW
    )
    assert isinstance(content, TickFrame)
    assert content.venue_time == sent
    assert content.ticks[0].tick == Trade(
        symbol="BNB-BTC", id=12345, venue="binance", price=0.001, size=100, side="S",
        time=Time(traded),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("venue", "frame", "kind", "text"),
    [
        (COINBASE, '{"type":"heartbeat","sequence":90,"last_trade_id":20,"product_id":"BTC-USD",'
                   '"time":"2014-11-07T08:19:28.464459Z"}', NoticeKind.HEARTBEAT, "heartbeat"),
        (COINBASE, '{"type":"subscriptions","channels":[]}', NoticeKind.ACCEPTED, "subscriptions"),
        (COINBASE, '{"type":"error","message":"Failed to subscribe","reason":"X-Y is not a valid'
                   ' product"}', NoticeKind.REFUSED,
         "Failed to subscribe: X-Y is not a valid product"),
        (COINBASE, '{"type":"error","message":"no"}', NoticeKind.REFUSED, "no"),
        (COINBASE, '{"type":"l2update","changes":[]}', NoticeKind.UNMAPPED, "l2update"),
        (COINBASE, '{"type":"ticker","sequence":1,"product_id":"X-Y","best_bid":"","best_ask":"1"}',
         NoticeKind.UNMAPPED, "ticker without a quote"),
        # Products that have never traded, and books with an empty side.
        (COINBASE, '{"type":"ticker","product_id":"X-Y","price":"0","best_bid":"0.00000",'
                   '"best_ask":"0.00000"}', NoticeKind.UNMAPPED, "ticker without a quote"),
        (COINBASE, '{"type":"ticker","sequence":0,"product_id":"X-Y","best_bid":"1",'
                   '"best_bid_size":"1","best_ask":"0","best_ask_size":"0.00"}',
         NoticeKind.UNMAPPED, "ticker without a quote"),
        (KRAKEN, '{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":null,'
                 '"bid_qty":null,"ask":3.1,"ask_qty":1.0}]}', NoticeKind.UNMAPPED,
         "ticker without a quote"),
        (KRAKEN, '{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":0,'
                 '"bid_qty":0,"ask":3.1,"ask_qty":1.0}]}', NoticeKind.UNMAPPED,
         "ticker without a quote"),
        (BINANCE, '{"stream":"btcusdt@bookTicker","data":{"u":1,"s":"BTCUSDT","b":"37000.00",'
                  '"B":"0.00","a":"0.00000000","A":"0.00000000"}}', NoticeKind.UNMAPPED,
         "ticker without a quote"),
        (BINANCE, '{"u":1,"s":"BTCUSDT","b":"0.0","B":"0.0","a":"1","A":"1"}', NoticeKind.UNMAPPED,
         "ticker without a quote"),
        (KRAKEN, '{"channel":"heartbeat"}', NoticeKind.HEARTBEAT, "heartbeat"),
        (KRAKEN, '{"channel":"status","type":"update","data":[{"system":"online"}]}',
         NoticeKind.UNMAPPED, "status"),
        (KRAKEN, '{"method":"subscribe","result":{"channel":"trade","symbol":"BTC/USD"},'
                 '"success":true,"time_in":"2023-09-25T09:04:31.742599Z",'
                 '"time_out":"2023-09-25T09:04:31.742648Z"}', NoticeKind.ACCEPTED, "subscribe"),
        (KRAKEN, '{"error":"Currency pair not supported X/Y","method":"subscribe","success":false,'
                 '"symbol":"X/Y"}', NoticeKind.REFUSED, "Currency pair not supported X/Y"),
        (KRAKEN, '{"error":"no","method":"subscribe","success":false,"symbol":"X/Y"}',
         NoticeKind.REFUSED, "no (X/Y)"),
        (BINANCE, '{"result":null,"id":1}', NoticeKind.ACCEPTED, "SUBSCRIBE"),
        (BINANCE, '{"code":2,"msg":"Invalid request"}', NoticeKind.REFUSED, "Invalid request"),
        (BINANCE, '{"error":{"code":3,"msg":"Invalid JSON"},"id":1}', NoticeKind.REFUSED,
         "Invalid JSON"),
        (BINANCE, '{"stream":"a@kline_1m","data":{}}', NoticeKind.UNMAPPED, "a@kline_1m"),
        (BINANCE, '{"e":"serverShutdown","E":1}', NoticeKind.UNMAPPED, "other"),
    ],
)  # fmt: skip
def test_frames_without_ticks(venue: Venue, frame: str, kind: NoticeKind, text: str) -> None:
    content = parse_frame(venue, frame.encode(), NOW)
    assert isinstance(content, Notice)
    assert (content.kind, content.text) == (kind, text)


@pytest.mark.parametrize("venue", VENUES.values(), ids=VENUES)
@pytest.mark.parametrize(
    "frame", [b"", b"\xff", b"[]", b"null", b"{", b'{"type":1,"stream":1,"channel":1}',
              b'{"type":' + b"[" * 100_000]
)  # fmt: skip
def test_garbage_is_a_bad_frame(venue: Venue, frame: bytes) -> None:
    with pytest.raises(BadFrame):
        parse_frame(venue, frame, NOW)


def test_a_market_of_another_form_is_a_bad_frame() -> None:
    with pytest.raises(BadFrame, match="'BNBXYZ' is not the name of a market"):
        parse_frame(
            BINANCE, (BINANCE_TRADE % (AT_MS, AT_MS)).replace("BNBBTC", "BNBXYZ").encode(), NOW
        )


@pytest.mark.parametrize("at", [0, 1, 1_672_515_782, 20_240_102, 1_672_515_782_136_000_000])
def test_binance_times_of_another_unit_are_refused(at: int) -> None:
    with pytest.raises(BadFrame, match="is not a time: "):
        parse_frame(BINANCE, (BINANCE_TRADE % (AT_MS, at)).encode(), NOW)


@pytest.mark.parametrize(
    ("venue", "frame", "good", "bad"),
    [
        (BINANCE, BINANCE_TRADE % (AT_MS, AT_MS), '"p":"0', '"p":"-0'),
        (BINANCE, BINANCE_BOOK, '"B":"3', '"B":"-3'),
        (COINBASE, COINBASE_TICKER, '"best_bid":"1', '"best_bid":"-1'),
        (COINBASE, COINBASE_MATCH, '"size":"5', '"size":"-5'),
        (KRAKEN, KRAKEN_TRADES, '"price":0', '"price":-0'),
        (KRAKEN, KRAKEN_TICKER % "", '"ask_qty":1', '"ask_qty":-1'),
    ],
)
def test_negative_values_are_bad_frames(venue: Venue, frame: str, good: str, bad: str) -> None:
    assert ticks_of(venue, frame)
    with pytest.raises(BadFrame):
        parse_frame(venue, frame.replace(good, bad, 1).encode(), NOW)


@pytest.mark.parametrize("combined", [BINANCE_TRADE % (AT_MS, AT_MS), BINANCE_BOOK])
def test_raw_streams_of_binance_are_equivalent(combined: str) -> None:
    raw = json.dumps(json.loads(combined)["data"])
    assert ticks_of(BINANCE, raw) == ticks_of(BINANCE, combined)


@pytest.mark.parametrize(("venue", "frame"), [(KRAKEN, KRAKEN_TRADES), (COINBASE, COINBASE_MATCH)])
def test_a_side_that_is_not_known_is_left_out(venue: Venue, frame: str) -> None:
    first = ticks_of(venue, frame.replace('"side":"sell"', '"side":"block"'))[0]
    assert isinstance(first, Trade)
    assert first.side is None


@given(st.floats(min_value=0, allow_infinity=False))
def test_numbers_are_read_as_python_reads_them(value: float) -> None:
    trade = KRAKEN_TRADES.replace("0.5117", repr(value))
    assert [tick.price for tick in ticks_of(KRAKEN, trade)[:1] if isinstance(tick, Trade)] == [
        value
    ]


def test_subscriptions() -> None:
    both = COINBASE.subscribe(["BTC-USD", "ETH-USD"], TickKinds())
    assert [json.loads(each) for each in both] == [
        {"type": "subscribe", "product_ids": [name], "channels": ["heartbeat", "matches", "ticker"]}
        for name in ("BTC-USD", "ETH-USD")
    ]
    (quotes,) = KRAKEN.subscribe(["BTC/USD"], TickKinds(trades=False))
    assert json.loads(quotes)["params"] == {
        "channel": "ticker", "event_trigger": "bbo", "snapshot": True, "symbol": ["BTC/USD"]
    }  # fmt: skip
    (trades,) = BINANCE.subscribe(["BTCUSDT"], TickKinds(quotes=False))
    assert json.loads(trades) == {"method": "SUBSCRIBE", "params": ["btcusdt@trade"], "id": 1}


def test_subscriptions_are_split_over_messages() -> None:
    names = [f"C{number}USDT" for number in range(512)]
    requests = [json.loads(each) for each in BINANCE.subscribe(names, TickKinds())]
    assert [len(each["params"]) for each in requests] == [200] * 5 + [24]
    assert len({stream for each in requests for stream in each["params"]}) == 1024


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("wss://ws-feed.pro.coinbase.com", "coinbase"),
        ("wss://ws-feed.exchange.coinbase.com", "coinbase"),
        ("wss://ws.kraken.com/v2", "kraken"),
        ("wss://stream.binance.com:9443/stream?streams=a", "binance"),
        ("ws://127.0.0.1:80/x#kraken", "kraken"),
        ("ws://127.0.0.1", None),
        ("wss://notkraken.com", None),
        ("wss://[", None),
    ],
)
def test_venues_are_known_by_their_addresses(url: str, name: str | None) -> None:
    venue = venue_at(url)
    assert (venue.name if venue else None) == name
