"""What a user writes: spec files and labels, parsed once into values."""
