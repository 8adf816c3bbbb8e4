"""Words on the command line become a composed and checked configuration."""
