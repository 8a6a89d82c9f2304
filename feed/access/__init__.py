"""Who may connect and see what: keys, tokens, and what they entitle to."""
