"""The terminal display of `tickcast watch`: market state rendered as lines of text. No I/O."""
