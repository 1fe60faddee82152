"""Damaged files for every reader of flaxtl."""
