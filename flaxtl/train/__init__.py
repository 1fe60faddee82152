"""Training: param groups, phases, the train step, the epoch loop, checkpoints. Alone imports optax and orbax."""
