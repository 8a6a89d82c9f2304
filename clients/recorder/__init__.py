"""Records a feed as a tape: `tickcast record`."""
