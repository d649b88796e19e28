"""Repositories on the Hub: what would be pushed of a model or a dataset, and pushing it."""
