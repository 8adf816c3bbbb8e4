"""What is simulated: structures, how a run begins from them, their test sets."""
