"""Weight files to numpy arrays, checked: reading, converting, merging, fetching."""
