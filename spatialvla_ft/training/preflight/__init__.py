"""What a run would train on, looked at before its first step: datasets, samples, grid, report."""
