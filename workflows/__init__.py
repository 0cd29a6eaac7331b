"""Temporal workflows: receive, ask core what to do, perform its commands. *Deterministic.*"""
