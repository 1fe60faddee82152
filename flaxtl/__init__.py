"""flaxtl: transfer learning in JAX and Flax, from a folder of pictures to a judged report."""

__version__ = "0.1.0"
