"""The shop, as a user would build it."""
