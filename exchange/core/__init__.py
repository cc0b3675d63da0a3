"""The pure core: sequencing rules, books, collateral, ledger. No clock, no I/O, no randomness."""
