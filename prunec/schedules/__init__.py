"""Which blocks have a site and how many tokens go on: the search, and what it must reach."""
