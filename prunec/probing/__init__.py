"""What an operator does, found by running it on random numbers."""
