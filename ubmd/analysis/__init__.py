"""What a run has learnt and explored: coverage, correlation times, metrics, figures and tables."""
