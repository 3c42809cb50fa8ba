"""What is measured of this project; ``python -m benchmarks`` lists the commands, ``results/`` keeps what they found."""
