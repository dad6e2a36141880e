"""Speed and size, each figure a ratio measured in one run."""
