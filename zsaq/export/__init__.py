"""The same integer codes for other runtimes."""
