"""The paths of the API, one module per subject. Does I/O: through the backend."""
