"""The HTTP side car: a client of the bus like any other, in a process of its own."""
