"""Many runs as one table, and what statistics say about them: pandas in, pandas out, no torch."""
