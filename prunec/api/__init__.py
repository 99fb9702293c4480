"""What people call: transform, optimize, plan, sweep, benchmark, save and load."""
