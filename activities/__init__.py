"""Temporal activities: one file per outside system. Does I/O: git, processes, HTTP, the ledger."""
