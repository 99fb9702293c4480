"""A module and an example become one graph: torch.export, and what must be so before and after it."""
