"""What `tickcast watch` shows on a terminal: a market, and lines made of it, without I/O."""
