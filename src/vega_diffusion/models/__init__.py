"""Networks and their weights: building, counting, detecting, reading and writing them."""
