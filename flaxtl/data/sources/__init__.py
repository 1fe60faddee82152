"""Where examples come from: folders, CSV files, archives, TFDS, and the synthetic flowers."""
