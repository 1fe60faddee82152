"""Predictions of a trained model, and what is computed from them."""
