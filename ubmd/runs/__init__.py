"""The folder of a run: what is written when, what of it is whole, who works in it."""
