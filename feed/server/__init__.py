"""The running server: routes, connections, sessions and metrics.

Connections come in from `feed.transport`; the actions of clients go to `feed.fanout`,
`feed.history` and `feed.replay`. Start with `app` for the routes, and with `session` for the rules
of one client.
"""
