"""The terminal dashboard of `tickcast watch`: its state and its pictures, without I/O."""
