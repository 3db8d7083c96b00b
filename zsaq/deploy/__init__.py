"""Other runtimes: the same integer codes, checked and timed."""
