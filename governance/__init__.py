"""What is permitted, and proof of what happened."""
