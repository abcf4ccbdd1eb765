"""Who is calling and what they may: keys, sessions, scopes, quotas."""
