"""What is watched of structures and trajectories."""
