"""Evaluation: how well answers are read, how honest intervals and promotions are, and what it costs."""
