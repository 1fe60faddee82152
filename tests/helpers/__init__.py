"""Shared by tests: small inputs, small runs, and readers of files that flaxtl writes."""
