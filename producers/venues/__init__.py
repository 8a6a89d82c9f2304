"""Live venues: one module for each venue, and the runner that serves all of them."""
