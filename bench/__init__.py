"""How meshbox compares with what one would use instead: `make bench`."""
