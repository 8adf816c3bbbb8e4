"""Potentials with a bias, which are potentials themselves."""
