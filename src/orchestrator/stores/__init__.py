"""Where it is kept: one folder per database, one contract for all."""
