"""Dataset cards: what a dataset says of its actions, cameras and words, and the shared form."""
