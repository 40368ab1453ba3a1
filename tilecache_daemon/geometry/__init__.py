"""Areas on the ground, and the cells that they overlap."""
