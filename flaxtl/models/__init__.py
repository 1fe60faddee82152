"""Model architectures with Keras' layer names, heads, and the registry. Alone imports flax."""
