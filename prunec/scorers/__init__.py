"""What scores tokens: learned parts, and the calls that compute a score."""
