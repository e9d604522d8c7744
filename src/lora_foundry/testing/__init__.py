"""Stand-ins that ship with the product, so that a user's own tests need no server and no GPU."""
