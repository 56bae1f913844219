"""What can be said of a unit (a channel, a head) of a network to tell how much would be lost with it."""
