"""bench run: a plan, what of it is done, and the jobs that do the rest."""
