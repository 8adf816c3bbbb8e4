"""What each command does: the only place that reads a configuration and builds objects of it."""
