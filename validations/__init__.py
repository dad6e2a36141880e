"""What must hold: expectation suites, leakage, the blind audit."""
