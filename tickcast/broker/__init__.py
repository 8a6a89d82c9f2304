"""Everything that knows Redis: keys, the publish script, pub/sub, history, the embedded store."""
