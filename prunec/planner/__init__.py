"""Chooses, for a policy and a model, at which block how many tokens go on: from measured times and losses."""
