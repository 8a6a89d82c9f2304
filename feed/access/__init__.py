"""Authentication and authorization: API keys, tokens, and their entitlements."""
