"""What people run around a venue: administration, journal tools, demo, replay, benchmark.

Each module has `add_commands`, by which the command line mounts it. A venue is needed? Then it is
started as a child process: what is shown and measured is the real thing.
"""
