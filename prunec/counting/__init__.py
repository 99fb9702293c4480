"""Which numbers of a captured graph follow its number of tokens."""
