"""The load tester: many clients in several processes check every tick, and a report.

A `Plan` and, if the run publishes, a producer come in; a `LoadReport` comes out. Start with `run`.
Worker processes (`workers`) hold the connections (`client_pool`, `client`), summarize each payload
(`payload`) and check it (`sequence`). `results` builds the report; `text` and `html` show it.
"""
