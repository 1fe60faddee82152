"""Devices and processes: mesh and shardings, jax.distributed, the compilation cache."""
