"""A simulated market, and scenarios such as an opening auction or an outage."""
