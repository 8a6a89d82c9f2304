"""Everything that knows Redis: keys, scripts, publisher, subscriber and the embedded store.

Ticks come in through `publisher`, which gathers them in a `publish_buffer` and sends them with a
`batch_sender`; `publish.lua` numbers, stores and publishes each batch in one step. They leave
through `subscriber` (live) and `store` (history and latest ticks). `embedded` runs a store of
our own. Start reading with `keys` and `publish.lua`.

Calls to Redis raise BrokerUnavailable if trying again later may help, and BrokerUnsuitable if it
does not; see `client.translated_errors`.
"""
