"""The symbolic token axis: after a selection the token count is a symbol, and the graph repairs itself."""
