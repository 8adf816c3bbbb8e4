"""References: methods that label structures with energy, forces and stress, and the store of labels."""
