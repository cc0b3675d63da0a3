"""The feed server: a process of its own that reads the event log and serves market data over TCP.

`source` follows the log, `market` keeps what it says, `history` reads it back; `views` are streams
of shared immutable bytes, and a subscriber is a cursor in one. Nothing here reaches the venue.
"""
