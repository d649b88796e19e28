"""The main job on an embedded default: record, train, adapt, export, evaluate, one report."""
