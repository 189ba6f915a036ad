"""What puts an epoll set and timers of our own into uvloop."""
