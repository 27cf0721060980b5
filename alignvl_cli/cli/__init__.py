"""One thin file a command: parse, call one function of a room, show one result."""
