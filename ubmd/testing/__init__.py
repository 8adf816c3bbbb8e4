"""Contracts as checks that other packages run on their own parts; nothing here needs pytest."""
