"""The commands of the server: `serve`, `demo`, `keys` and `doctor`."""
