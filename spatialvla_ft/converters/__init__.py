"""From one format of recorded data to another, and columns added to what is recorded."""
