"""The figures and tables of the paper, drawn from run folders (``ubmd figures``)."""
