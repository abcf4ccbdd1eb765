"""``scheme: "auto"``: try a few configurations on a few rows, and take the best one that meets the target."""
