"""The program that passes hand on: its graph, its inputs and outputs, its sizes and types."""
