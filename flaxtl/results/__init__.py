"""What a person looks at: predictions, measures, plots and the report."""
