"""What is missing, what it will cost and what it can show. Starts nothing but the probe."""
