"""Valid inputs of the parsers, for the fuzzers to begin with."""

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
    b'{"action":"configure","replay":true}',
    b'{"action":"replay.seek"}',
)
REPLAY_COMMANDS: Final = (
    b'{"do":"pause","id":"x"}',
    b'{"do":"seek","id":"x","position":"+10m"}',
    b'{"do":"seek","id":"x","position":1378054800083000000}',
    b'{"do":"speed","id":"x","speed":2.5}',
    b'{"do":"speed","id":"x","speed":"max"}',
    b'{"do":"step","id":"x","ticks":3}',
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
    b"1.378054800083e+12",
    b"20130901 170000083+00",
    b"2013.09.01D17:00:00.083 UTC",
    b"2013/9/1 17:00",
    b"20130901",
    b"01.09.2013 17:00:00",
)
LINES: Final = (
    b'{"T":"t","S":"A","p":1,"s":2,"seq":7,"snap":true,"cf":3}',
    b'{"T":"b","S":"A","o":1,"h":1,"l":1,"c":1,"v":1,"n":1,"vw":1,"t":0}',
    b'{"T":"t","S":"A","p":1e308,"s":0,"i":"\\u00e9","x":"X","tks":"S"}',
    b'[{"T":"t","S":"A","p":1,"s":2,"t":1378054800083.5,"c":["@"],"z":"C"},{"T":"gap"}]',
)
# The first byte is the size of the pieces.
STREAMS: Final = (
    b'\x04[\n{"T":"t","S":"A","p":1,"s":2},\n{"T":"t","S":"B",\n"p":1,"s":2}\n]\n',
    b'\x09{"T":"t","S":"A","p":1,"s":2}\n{"T":"t","S":"A"\n\n{"T":"t","S":"B","p":1,"s":2}',
    b'\x40{"trades":[\n {"t":"2026-01-05T14:30:00Z","p":1,"s":2,"c":["@"]}\n],\n"symbol":"A"}',
    b'\x80{"A":[{"t":"2026-01-05T14:30:00Z","bp":1,"bs":2,"ap":3,"as":4}],"B":[]}',
    b'\x05time,price,size\n1378054801,1,2\n1378054802,"1,2\n1378054803,1,2\n',
    b'\xff[{"T":"t","S":"A","p":1,"s":2},\n{"T":"t","S":"x\n{"T":"t","S":"B","p":1,"s":2},\n',
)
CSV: Final = (
    b"DateTime,Price,Volume\n2013-09-01 17:00:00.083,1640.25,8\n2013-09-01 17:00:00.101,1640.5,1\n",
    b"date;time;symbol;price;size;side;id;venue\n2013-09-01;17:00:00;ES;1;2;buy;7;X\n",
    b"ts,sym,bid,bidsize,ask,asksize,price,size\n1378054800083,A,1,2,3,4,,\n1378054801,B,,,,,5,6\n",
    b'\xef\xbb\xbftime\tp\ts\tsymbol\r\n1378054801.5\t"1"\t1\tA\r\n\r\n2\t1\n',
    b"# x\nsep=;\n# ts;p;s\n1378054801;1;2\n1378054802;-1_0;2\n1378054803;;\n",
    b"ts_event,rtype,publisher_id,action,price,size,bid_px_00,ask_px_00,bid_sz_00,ask_sz_00\n"
    b"1378054800083000000,1,1,T,4770500000000,1,1,2,3,4\n1378054800083000000,1,1,R,,,,,0,0\n",
    b"DATE,TIME_M,SYM_ROOT,SYM_SUFFIX,PRICE,SIZE\n20130901,9:30:00.004219648,BRK,B,1,2\n",
    "t,p,s,is_buyer_maker\n1378054800,1,2,true\n".encode("utf-16"),
)
HEADS: Final = (
    b"sep=;\ntime;price;size\n1;2;3\n",
    b"# made by x\n# time,price,size\n1,2,3\n",
    b"http://example.com\n\ntime\tprice\n",
    b"1,2,3\n",
)
TIME_FORMATS: Final = (
    b"%d.%m.%Y %H:%M:%S.%f\n01.09.2013 17:00:00.083",
    b"%b %d, %y %I:%M %p %z\nSep 1, 13 5:00 PM -05",
    b"ms\n1378054800083",
)
NUMBERS: Final = (
    b"1.5",
    b"1.000,5",
    b"542,625.00",
    b"-1'000",
    b"1_0",
    b"0x1",
    b"922337203685477580",
)
COINBASE: Final = (
    b'{"type":"match","trade_id":280232,"side":"sell","size":"985","price":"0.00001305",'
    b'"product_id":"SKL-BTC","sequence":177100030,"time":"2021-04-17T16:43:37.089723Z"}',
    b'{"type":"ticker","sequence":5,"product_id":"A-B","best_bid":"1.5","best_bid_size":"1",'
    b'"best_ask":"2","best_ask_size":"0","time":"2021-04-17T16:43:37Z"}',
    b'{"type":"heartbeat","sequence":9,"product_id":"A-B","time":"2014-11-07T08:19:28.464459Z"}',
    b'{"type":"error","message":"Failed to subscribe","reason":"A-B is not a valid product"}',
)
KRAKEN: Final = (
    b'{"channel":"trade","type":"update","data":[{"symbol":"XBT/USD","side":"sell","price":0.51,'
    b'"qty":40,"trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
    b'{"channel":"ticker","type":"snapshot","data":[{"symbol":"A/B","bid":0.1,"bid_qty":740.0,'
    b'"ask":0.2,"ask_qty":1e3,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
    b'{"error":"Currency pair not supported A/B","method":"subscribe","success":false,'
    b'"symbol":"A/B","time_out":"2023-09-25T09:04:31.742648Z"}',
)
BINANCE: Final = (
    b'{"stream":"bnbbtc@trade","data":{"e":"trade","E":1672515782136,"s":"BNBBTC","t":12345,'
    b'"p":"0.001","q":"100","T":1672515782136001,"m":true,"M":true}}',
    b'{"stream":"x@aggTrade","data":{"E":1633998523963,"s":"NKNUSDT","a":15683430,"p":"0.35",'
    b'"q":"58.00000000","T":1633998523963,"m":false}}',
    b'{"stream":"x@bookTicker","data":{"u":499869768,"s":"NKNUSDT","b":"0.352","B":"672",'
    b'"a":"0.353","A":"3199.00000000"}}',
    b'{"error":{"code":3,"msg":"Invalid JSON"},"id":1}',
    b'{"result":null,"id":1}',
)
CAPTURES: Final = (
    b"wss://ws.kraken.com/v2 <-> 1618677816.8434298\nwss://ws.kraken.com/v2 <- 1618677817.02: {}\n"
    b"1618677817.061845: %b\n1618677818: %b\n" % KRAKEN[:2],
    b"ws://127.0.0.1:9#binance <-> 1\n\n2: %b\nwss://coinbase.com/ <-> 3\n3: %b\r\n"
    % (BINANCE[0], COINBASE[0]),
)
TAPES: Final = (
    b'{"T":"tape","v":1,"feed":"live","source":"ws://x"}\n'
    b'{"T":"epoch","ch":"trades","S":"A","epoch":"06","seq":4,"rx":5}\n'
    b'{"T":"t","S":"A","p":1.5,"s":2.0,"t":"2026-01-05T14:30:00.25Z","seq":5,"rx":6}\n'
    b'{"T":"gap","ch":"trades","S":"A","from":6,"to":7,"reason":"retention","rx":7}\n'
    b'{"T":"t","S":"A","p":1.5,"s":2.0,"t":"2026-01-05T14:30:00Z","seq":9,"cf":1,"rx":8}\n'
    b'{"T":"gap","ch":"trades","S":"A","from":null,"to":null,"reason":"epoch","rx":7}\n'
    b'{"T":"b","S":"A","o":1,"h":1,"l":1,"c":1,"v":1,"n":1,"vw":1,"t":0,"tf":"5s"}\n',
    b'{"T":"tape","v":1,"feed":"live"}\n{"T":"t","S":"A","p":1,"s":2,"t":0,"seq":1,"snap":true}\n',
)
MANIFESTS: Final = (
    b'{"version":1,"feed":"live","source":"","complete":true,"ticks":1,"first":1,"last":"1970-01-01'
    b'T00:00:00Z","bytes":9,"content":"","streams":[{"channel":"trades","symbol":"A","ticks":1,'
    b'"first":1,"last":1,"first_seq":1,"last_seq":1,"epoch":"","seq":1,"sha256":""}],"gaps":[{"T":'
    b'"gap","ch":"trades","S":"A","from":1,"to":2,"reason":"broker","rx":1}],"frames":[[0,1,1,1]]}',
)
COLUMNS: Final = (b"time=DateTime,price=Last", b"bid_size=a = b")
CREDENTIALS: Final = (
    b"authorization:Bearer tick_0123456789ab_" + b"x" * 43,
    b"apca-api-key-id:a\napca-api-secret-key:b",
    b"eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjk5OTk5OTk5OTl9.AAAA",
)
KEYS: Final = (
    b'[keys.a]\nname = "x"\nhash = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAA"\n'
    b'feeds = ["live"]\nsymbols = ["BTC-*"]\nexpires = 2026-11-24T12:00:00Z\n',
)
FRAGMENTS: Final = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\x00", b"\xff", b"*", b"-",
    b"9" * 20, b"9" * 400, b"1e400", b"-0", b"NaN", b"Infinity", b"null", b"true", b"1.5",
    b"\\ud800", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc7\x08", b"\xd6\xff",
    b"\xcf",
)  # fmt: skip
"""Known difficult values, to be inserted into the seeds."""
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
"""Sizes up to the longest message, and beyond the size of one read."""
