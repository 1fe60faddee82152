"""Images: sources, splits, decoding, augmentation, and the loaders that put them on the devices."""
