"""Policies: the language, what goes together in it, and a policy made concrete for one model."""
