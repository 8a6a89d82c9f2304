"""The commands that consume: arguments in, calls of the client library out.

`watch` and `record` show and record a stream, `load` tests a server with many clients. `connecting`
has what they share: options for the connection, and checks of channels and symbols. The recording
itself is in `recorder`.
"""
