"""Live venues: one module for each, and what runs any of them."""
