"""The folder that holds a pruned model: its manifest, and how it is written."""
