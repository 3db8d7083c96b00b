"""One file for each paper: how its images are made, and how a student is fitted on them."""
