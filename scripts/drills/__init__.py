"""The parts of ``scripts/drill.py``."""
