"""Action heads: how hidden states become a chunk of actions, and what they learn from."""
