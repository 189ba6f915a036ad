"""Pure functions from facts to what this host should have, and to the steps that lead there."""
