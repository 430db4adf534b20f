"""Many application hosts on one machine: simulated hosts, the roles that touch hosts, and what they cost each."""
