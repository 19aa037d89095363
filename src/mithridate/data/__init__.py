"""Where data come from, and what each part of it is for."""
