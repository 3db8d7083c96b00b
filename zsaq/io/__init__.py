"""To disk and back: save, load, and which bytes a saved model consists of."""
