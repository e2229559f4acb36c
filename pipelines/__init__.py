"""What a person runs: sweep, train, score, doctor."""
