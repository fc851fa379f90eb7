"""Ways to evaluate one model's networks (torch, torch compiled, OpenVINO) behind the same few protocols."""
