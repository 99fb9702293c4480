"""What was found, done and measured, as text, as a page and as pictures."""
