"""Everything per connection, packet or DNS question, as plain callbacks on uvloop."""
