"""From files to arrays of tokens."""
