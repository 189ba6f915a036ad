"""The host itself: its addresses, its DNS resolvers, and its resolver settings."""
