"""Training: groups, phases, steps, features, checkpoints. The only room that imports optax and orbax."""
