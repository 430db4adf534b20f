"""Rules of the repository that no linter knows. Each rule is a function returning what breaks it, so that it can be
tried on a planted offence: a guard that has never fired proves nothing."""
