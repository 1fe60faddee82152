"""Pages of the documentation that are written by the code itself: whatever it knows is told nowhere else."""
