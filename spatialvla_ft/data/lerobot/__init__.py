"""LeRobot datasets, v2.1 and v3.0: read as samples, written, converted, exchanged with the Hub."""
