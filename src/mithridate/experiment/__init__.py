"""An experiment's file: its fields, what they may hold, how it is read, and where its data come from."""
