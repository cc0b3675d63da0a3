"""The replica: a process beside the venue that runs the same commands, and makes the snapshots.

Names are imported from the modules that define them.
"""
