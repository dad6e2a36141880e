"""QA data sets: states, candidates, stability, quads, wording."""
