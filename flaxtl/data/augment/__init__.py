"""Augmentation on the device: its config, the operations, mixing, and views for test-time augmentation."""
