"""The commands that consume: `watch`, `record` and `load`."""
