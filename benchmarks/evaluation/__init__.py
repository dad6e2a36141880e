"""`make bench NAME=evaluation`: how well answers are read, how honest the intervals are, what an evaluation costs."""
