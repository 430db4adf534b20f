"""What ``scripts/demo`` runs: the migration of the lab under live traffic, and the oracle's verdict on it."""
