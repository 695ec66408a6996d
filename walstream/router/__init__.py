"""Which of the connected clients' bindings a change matches, without work for those it does not."""
