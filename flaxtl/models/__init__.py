"""Networks: architectures, their head, and the catalog. The only room that imports flax."""
