"""What ``scripts/benchmark.py`` measures: one module for each group of rows."""
