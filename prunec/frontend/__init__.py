"""Where a model comes from: a SOURCE string or a module becomes a module in eval mode with example inputs."""
