"""A trained model as files that are used without its run directory."""
