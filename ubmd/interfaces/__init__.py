"""Potentials in the programs of others."""
