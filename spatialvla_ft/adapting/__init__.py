"""The stages of `spatialvla-ft adapt`, and what lets a second call skip what is done."""
