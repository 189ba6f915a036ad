"""The one loop, and the hands by which its steps become deeds."""
