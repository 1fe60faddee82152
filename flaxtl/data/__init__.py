"""Pictures: what they are, where they lie, how they are decoded, augmented and put on the device."""
