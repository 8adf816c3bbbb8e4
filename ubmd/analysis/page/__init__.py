"""``report.html``: a run on one page that needs nothing beside itself, whatever became of the run."""
