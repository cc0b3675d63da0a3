"""The matching process: the shell around the core. One process, one event loop, one writer.

`order_entry` and `connection` bring frames, `ingress` and `sequencer` turn them into commands,
`commit` makes them durable, `service` starts and stops it all. Nothing leaves before it is durable.
"""
