"""The ledger: tables, migrations, admission, outbox, projections, queries. Does I/O: SQL."""
