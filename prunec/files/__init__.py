"""Model and weight files, read without running anything that is in them."""
