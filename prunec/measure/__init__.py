"""What pruning costs and gains: FLOPs, time and accuracy, each beside its control."""
