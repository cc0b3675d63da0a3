"""Bytes to messages and back: sans-I/O, pure, imports nothing of ours.

`spec/` holds the pages; the modules here follow them and a test compares the two.
"""
