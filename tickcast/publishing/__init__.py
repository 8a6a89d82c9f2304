"""How user programs publish: `tickcast.Publisher`, and frames of data.

Ticks and frames come in and go to `tickcast.broker.publisher`. Start reading with `publisher`;
`frames` makes ticks of the tables of polars, pandas and pyarrow. `tickcast.blocking` has the
publisher for threads.
"""
