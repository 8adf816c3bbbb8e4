"""Walkers, their state, where they start and stop, and what they leave behind."""
