"""Tabletop simulation: two robots, seven tasks, scripted experts, recording as RLDS.

Neither torch nor TensorFlow is imported here: EGL rendering followed by torch's first use of
Triton crashes the process, so simulation runs in processes of its own (see `pool`).
"""
