"""Export of a trained model for use without its run directory."""
