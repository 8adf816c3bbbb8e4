"""Integrators of the walkers' equations of motion: settings, and free functions over their state."""
