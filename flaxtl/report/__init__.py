"""Tables and HTML pages about a run, a dataset, or several runs."""
