"""Processes and wiring: control worker, factory agent, supervisor, gateway, stack. Does I/O: all of it."""
