"""What can be wrong with recordings, one family of checks a file; `data/validate.py` runs them."""
