"""Who may connect, who they are, and what they may see and do.

A handshake's credentials come in; a `Grant` or an error goes out. `admission` checks a client
before the handshake, `authenticator` its credentials, and `action_policy` each later action: its
price in messages, the number of subscriptions, and the client's rights. Limits per address are in
`feed.transport.address_limits`, and limits across servers in `tickcast.broker.limits`.
"""
