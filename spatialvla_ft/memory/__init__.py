"""Whether a run fits: what its parts need, what the machine has, and what to change."""
