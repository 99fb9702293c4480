"""Latency tables: the pieces of a model at every length of its stream, measured or predicted, and losses."""
