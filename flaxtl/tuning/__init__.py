"""Sweeps over settings, and the learning-rate finder."""
