"""The documentation, and what writes those of its pages that say what the code says."""
