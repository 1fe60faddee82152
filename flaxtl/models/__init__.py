"""Model architectures with Keras' layer names, heads, and the registry. The only package that imports flax."""
