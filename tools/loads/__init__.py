"""Loads: what is large, hostile or read-only, made in a folder and put through the real commands."""
