"""What the docs quote: all runs, tables and figures, and what happens after adaptation."""
