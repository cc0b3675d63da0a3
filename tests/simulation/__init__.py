"""The whole of Brier on one seeded loop: virtual time, simulated disks and networks."""
