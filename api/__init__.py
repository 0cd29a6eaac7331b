"""The control plane over HTTP: routes, authentication, live streams. Does I/O: HTTP, the ledger, Temporal."""
