"""The control plane over HTTP: routes, authentication, live streams, web pages. Does I/O: HTTP, the ledger, Temporal."""
