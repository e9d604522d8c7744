"""sd-scripts as the trainer: the checkout and the Python environment that a user already trusts, run as another
program and never imported, so that its pins and ours do not meet."""
