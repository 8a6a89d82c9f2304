"""The load tester: many clients in several processes check every tick, and a report.

A `Plan` and, if the run publishes, a producer come in; a `LoadReport` comes out. `run.py` leads
through a run. Worker processes (`worker.py`) hold the connections (`client_pool.py`, `client.py`),
summarize each payload (`payload.py`) and check it (`sequence.py`). `results.py` builds the report.
"""
