"""What makes an image good, and what a student should match."""
