"""What it makes: one folder per link of the chain, in chain order."""
