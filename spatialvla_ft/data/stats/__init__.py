"""What the actions of a dataset are like: the blocks kept of them, statistics, fits, scans."""
