"""Small commands beside runs: what lies in the cache, what the machine is."""
