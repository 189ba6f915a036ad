"""The appliance as a process: built, started in order, stopped in reverse."""
