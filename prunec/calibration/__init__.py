"""Fit learned parts and thresholds to what the dense model itself reveals."""
