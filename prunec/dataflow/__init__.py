"""The flow of the image through a graph: streams, residual adds, heads."""
