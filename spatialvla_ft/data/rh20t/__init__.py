"""RH20T as it is released, read and written as RLDS. See docs/rh20t.md."""
