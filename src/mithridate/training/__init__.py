"""The Trainer that runs defenses, and what it offers them."""
