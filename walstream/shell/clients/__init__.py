"""The clients' side: listeners, sockets, handshakes, sessions performed, joins answered."""
