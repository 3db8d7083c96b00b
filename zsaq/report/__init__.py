"""What people read of a run: the model card, the Hub, and a page."""
