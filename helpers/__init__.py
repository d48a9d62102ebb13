"""What the methods share and no paper mentions. Nothing in here imports a method."""
