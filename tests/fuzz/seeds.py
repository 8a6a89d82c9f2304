"""Inputs that the parsers know, for the fuzzers to begin with."""

from __future__ import annotations

from typing import Final

ACTIONS: Final = (
    b'{"action":"auth","key":"k","secret":"s","id":1}',
    b'{"action":"auth","token":"t"}',
    b'{"action":"subscribe","trades":["AAPL","BTC-*"],"quotes":["*"],"bars:1s":["A"],"id":"x"}',
    b'{"action":"subscribe","trades":["A"],"snapshot":true,"positions":true,"slow":"skip"}',
    b'{"action":"subscribe","trades":["A"],"conflate_ms":255,"start":"2013-09-01T17:00:00.083Z"}',
    b'{"action":"subscribe","bars":["A"],"start":1378054800083000000}',
    b'{"action":"subscribe","trades":["A","B*"],"resume":{"epoch":"e","trades":{"A":7,"B*":0}}}',
    b'{"action":"subscribe","quotes":["*"],"resume":[{"epoch":"e"},{"epoch":"f","quotes":{"A":1}}]}',
    b'{"action":"unsubscribe","trades":["A"],"quotes":["B*"]}',
    b'{"action":"list","id":"\\u00e9"}',
    b'{"action":"ping","id":-9223372036854775808}',
    b'{"action":"configure","heartbeat_ms":100,"stamps":true,"slow":null,"conflate_ms":10}',
    b'{"action":"replay.seek"}',
)
TIMES: Final = (
    b"2013-09-01T17:00:00.083Z",
    b"2013-09-01 17:00:00,083000001+02:00",
    b"1677-09-21T00:12:43.145224192Z",
    b"2262-04-11T23:47:16.854775807Z",
    b"2016-12-31T23:59:60-0530",
    b"1378054800.083",
    b"1378054800083000000",
    b"1378054800083.000001",
)
LINES: Final = (
    b'{"T":"t","S":"A","p":1,"s":2,"seq":7,"snap":true,"cf":3}',
    b'{"T":"b","S":"A","o":1,"h":1,"l":1,"c":1,"v":1,"n":1,"vw":1,"t":0}',
    b'{"T":"t","S":"A","p":1e308,"s":0,"i":"\\u00e9","x":"X","tks":"S"}',
)
CSV: Final = (
    b"DateTime,Price,Volume\n2013-09-01 17:00:00.083,1640.25,8\n2013-09-01 17:00:00.101,1640.5,1\n",
    b"date;time;symbol;price;size;side;id;venue\n2013-09-01;17:00:00;ES;1;2;buy;7;X\n",
    b"ts,sym,bid,bidsize,ask,asksize,price,size\n1378054800083,A,1,2,3,4,,\n1378054801,B,,,,,5,6\n",
    b'\xef\xbb\xbft\tp\ts\tsymbol\r\n1.5\t"1"\t1\tA\r\n\r\n2\t1\n',
)
COLUMNS: Final = (b"time=DateTime,price=Last", b"bid_size=a = b")
FRAGMENTS: Final = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\x00", b"\xff", b"*", b"-",
    b"9" * 20, b"9" * 400, b"1e400", b"-0", b"NaN", b"Infinity", b"null", b"true", b"1.5",
    b"\\ud800", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc7\x08", b"\xd6\xff",
    b"\xcf",
)  # fmt: skip
"""What parsers are known to stumble over, to be put into those."""
HUGE: Final = (
    b"[" * 65_536,
    b'{"a":' * 13_000,
    b"9" * 65_536,
    b"0." + b"0" * 65_534,
    b"1." + b"9" * 65_534,
    b'"' + b"\\u0000" * 10_000,
    b'"' * 65_536,
    b"," * 65_536,
    b"\n" * 65_536,
    b"\x91" * 65_536,
    b"\xdf\xff\xff\xff\xff" * 13_000,
    b"t,p,s,symbol" + b"," * 140_000,
    b'"' + b"x" * 140_000,
)
"""As long as messages can be, or longer than what is read at once."""
