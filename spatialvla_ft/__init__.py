"""Fine-tune, evaluate and ship spatial vision-language-action models for robots."""
