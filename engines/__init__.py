"""Engines: one file per agent CLI and the YAML-described one; builds commands, parses streams. *Pure.*"""
