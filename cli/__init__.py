"""The command line: a thin client of the API. Does I/O: terminal, HTTP; only `up` and its like start processes."""
